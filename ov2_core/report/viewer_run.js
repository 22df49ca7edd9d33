// The run as a whole: balance of the manifest, totals, throughput, distributions, what was left out and why.
'use strict';

function renderHeader(run) {
  const parts = [['committed', run.committed], ['filtered', run.filtered], ['quarantined', run.quarantined], ['pending', run.pending]];
  const total = Math.max(1, parts.reduce((sum, [, count]) => sum + count, 0));
  const state = run.pending > 0 ? 'wait' : run.quarantined > 0 ? 'warn' : 'good';
  const words = {
    wait: `${fmtInt(run.pending)} of ${fmtInt(run.manifest_rows)} rows still to do`,
    warn: `Complete, ${fmtInt(run.quarantined)} quarantined`,
    good: 'Complete, every row accounted for',
  };
  const bar = el('div', { class: 'balance', role: 'img', 'aria-label': parts.map(([name, count]) => `${count} ${name}`).join(', ') });
  for (const [name, count] of parts) {
    if (!count) continue;
    const piece = el('span', { class: 'piece ' + name, title: `${fmtInt(count)} ${name}` });
    piece.style.flexGrow = Math.max(count / total, 0.004);
    bar.append(piece);
  }
  return el('header', { class: 'top' },
    el('p', { class: 'over', text: 'Tokenization run' }),
    el('div', { class: 'headline' }, el('h1', { text: run.recipe }), el('span', { class: 'pill ' + state, text: words[state] })),
    el('p', { class: 'path', text: run.root }),
    bar,
    el('ul', { class: 'legend' }, parts.map(([name, count]) =>
      el('li', { class: count ? '' : 'none' }, el('i', { class: name }), el('b', { text: fmtInt(count) }), ' ' + name)),
      el('li', { class: 'sum' }, '= ', el('b', { text: fmtInt(run.manifest_rows) }), ' manifest rows')));
}

function renderNav(run) {
  const links = [['overview', 'Overview'], ['distributions', 'Distributions'], ['left-out', 'Left out'], ['samples', 'Samples'], ['about', 'Run']];
  return el('nav', { class: 'nav', 'aria-label': 'Parts of the report' }, links.map(([id, name]) =>
    el('a', { href: '#' + id }, name, id === 'left-out' && run.quarantined > 0 && el('em', { text: fmtInt(run.quarantined) }))));
}

function renderOverview(run) {
  const hours = run.video_seconds / 3600;
  const tiles = [
    ['Samples', fmtInt(run.committed), `${fmtInt(run.num_shards_committed)} shard${run.num_shards_committed === 1 ? "" : "s"}, ${fmtBytes(run.tar_bytes)}`],
    ['Video', fmtDuration(run.video_seconds), `${fmtInt(run.num_groups)} groups`],
    ['Tokens', fmtShort(run.num_tokens), run.video_seconds ? `${fmtShort(run.num_tokens / run.video_seconds)} a second of video` : 'stills'],
    ['Images', fmtShort(run.num_images), run.num_tokens ? `${fmtShort(run.sample_bytes / run.num_tokens)} bytes a token` : ''],
    ['Throughput, tokenizing', run.wall_seconds ? `${fmtShort(run.committed / run.wall_seconds)} /s` : '–',
      run.wall_seconds ? `${fmtShort(hours / (run.wall_seconds / 3600))} video-hours an hour` : 'no shard yet'],
    ['CPU', fmtDuration(run.cpu_seconds), run.video_seconds ? `${fmtShort(run.cpu_seconds / run.video_seconds)} s per second of video` : ''],
  ];
  return el('section', { id: 'overview', class: 'part' },
    el('h2', { text: 'Overview' }),
    el('div', { class: 'tiles' }, tiles.map(([name, value, note]) =>
      el('div', { class: 'tile' }, el('span', { text: name }), el('b', { text: value }), el('small', { text: note })))),
    el('div', { class: 'pair' }, renderPredictions(run),
      card('Throughput', facts([
        ['Wall time with a shard in work', fmtDuration(run.wall_seconds)],
        ['CPU time of the samples', fmtDuration(run.cpu_seconds)],
        ['Busy cores, mean', run.wall_seconds ? (run.cpu_seconds / run.wall_seconds).toFixed(2) : '–'],
        ['Largest worker', run.peak_rss_bytes ? fmtBytes(run.peak_rss_bytes) : 'not recorded'],
        ['Shards', `${fmtInt(run.num_shards_committed)} of ${fmtInt(run.num_shards)}`],
      ]))),
    run.notes.map((note) => el('p', { class: 'note', text: note })));
}

function renderPredictions(run) {
  if (!run.predictions.length) return card('Plan against outcome', el('p', { class: 'dim', text: 'This run has no plan.' }));
  const rows = run.predictions.map(({ name, unit, predicted, actual }) => {
    const scale = Math.max(predicted, actual, 1e-9);
    const bars = ['predicted', 'actual'].map((kind, i) => {
      const bar = el('i', { class: kind });
      bar.style.width = `${Math.max(0.6, ([predicted, actual][i] / scale) * 100)}%`;
      return bar;
    });
    const ratio = predicted > 0 ? actual / predicted : null;
    return el('tr', {}, el('th', { scope: 'row', text: name }), el('td', { class: 'bars' }, bars),
      el('td', { class: 'num', text: fmtValue(predicted, unit) }), el('td', { class: 'num', text: fmtValue(actual, unit) }),
      el('td', { class: 'num ratio', text: ratio === null ? '–' : '×' + ratio.toFixed(2) }));
  });
  return card('Plan against outcome', el('table', { class: 'plan' },
    el('thead', {}, el('tr', {}, ['', '', 'planned', 'actual', 'ratio'].map((name) => el('th', { scope: 'col', text: name })))),
    el('tbody', {}, rows)));
}

function renderHistogram({ title, unit, bars, kind, median, high, largest, scale }) {
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  if (kind === 'category') {
    const rows = bars.map((bar) => {
      const fill = el('i', {});
      fill.style.width = `${(bar.count / most) * 100}%`;
      return el('li', {}, el('span', { text: bar.label }), el('div', {}, fill), el('b', { text: fmtInt(bar.count) }));
    });
    return el('figure', { class: 'card chart' }, el('figcaption', {}, el('h3', { text: title })), el('ul', { class: 'cats' }, rows));
  }
  const width = 320, height = 96, step = width / bars.length;
  const chart = svg('svg', { viewBox: `0 0 ${width} ${height + 18}`, role: 'img', 'aria-label': `${title}: median ${fmtValue(median, unit)}` });
  bars.forEach((bar, i) => {
    const tall = bar.count ? Math.max(2, (bar.count / most) * (height - 4)) : 0;
    chart.append(svg('g', { class: 'bar' },
      svg('rect', { class: 'hit', x: i * step, y: 0, width: step, height }),
      svg('rect', { class: 'fill', x: i * step + 0.75, y: height - tall, width: Math.max(1, step - 1.5), height: tall, rx: Math.min(2, step / 4) }),
      svg('title', { text: `${fmtValue(bar.low, unit)} to ${fmtValue(bar.high, unit)}: ${fmtInt(bar.count)}` })));
  });
  chart.append(svg('line', { class: 'axis', x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }));
  const marks = bars.length > 1 ? [[0, 'start', bars[0].low], [width / 2, 'middle', bars[Math.floor(bars.length / 2)].low], [width, 'end', bars.at(-1).high]] : [[width / 2, 'middle', median]];
  if (bars.length % 2) marks.splice(1, bars.length > 1 ? 1 : 0);
  for (const [x, anchor, value] of marks) chart.append(svg('text', { x, y: height + 14, 'text-anchor': anchor, text: fmtValue(value, unit) }));
  return el('figure', { class: 'card chart' },
    el('figcaption', {}, el('h3', { text: title }), scale === 'log' && el('span', { class: 'tag', text: 'log scale' })), chart,
    el('p', { class: 'stats' }, ['median ', el('b', { text: fmtValue(median, unit) }), ' · p95 ', el('b', { text: fmtValue(high, unit) }), ' · most ', el('b', { text: fmtValue(largest, unit) })]));
}

function renderDistributions(run) {
  return el('section', { id: 'distributions', class: 'part' }, el('h2', { text: 'Distributions' }),
    run.histograms.length
      ? el('div', { class: 'charts' }, run.histograms.map(renderHistogram))
      : el('p', { class: 'card dim', text: 'No committed sample yet.' }));
}

function renderLeftOut(run) {
  const example = (row) => el('tr', {}, el('td', { class: 'num', text: row.line }), el('td', { class: 'id', text: row.id ?? '–' }),
    el('td', {}, el('span', { class: 'message', text: row.message }), row.uri && el('span', { class: 'uri', text: row.uri })));
  const table = (entry, open) => el('details', { class: 'card reason', open },
    el('summary', {}, el('b', { text: fmtInt(entry.count) }), el('code', { text: entry.name }), el('span', { class: 'dim', text: entry.detail })),
    el('div', { class: 'scroll' }, el('table', { class: 'ledger' },
      el('thead', {}, el('tr', {}, ['line', 'id', 'what happened'].map((name) => el('th', { scope: 'col', text: name })))),
      el('tbody', {}, entry.examples.map(example)))),
    entry.count > entry.examples.length && el('p', { class: 'dim', text: `${fmtInt(entry.count - entry.examples.length)} more in the ledger.` }));
  const group = (title, entries, empty) => [el('h3', { class: 'sub', text: title }),
    entries.length ? entries.map((entry, i) => table(entry, i < 1)) : el('p', { class: 'card dim', text: empty })];
  return el('section', { id: 'left-out', class: 'part' }, el('h2', { text: 'Left out' }),
    group(`Quarantined (${fmtInt(run.quarantined)})`, run.quarantine, 'Nothing was quarantined.'),
    run.filter_rules.length > 0 && group(`Filtered by a rule (${fmtInt(run.filtered)})`, run.filter_rules, ''));
}

function renderAbout(run) {
  return el('section', { id: 'about', class: 'part' }, el('h2', { text: 'Run' }),
    el('div', { class: 'pair' }, card('Identity', facts(run.identity)), run.libraries.length > 0 && card('Libraries', facts(run.libraries))),
    run.config && el('details', { class: 'card' }, el('summary', { text: 'Resolved config' }), el('pre', { text: JSON.stringify(run.config, null, 2) })));
}
