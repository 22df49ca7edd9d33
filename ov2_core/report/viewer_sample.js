// One sample: timeline, canvases by group, the block under the pointer, the rebuilt clip, the text; and the start of the page.
'use strict';

class SampleView {
  constructor(sample) {
    this.sample = sample;
    this.evidence = new Evidence(sample);
    this.video = sample.fps !== null;
    this.lastTick = Math.max(0, ...sample.groups.filter((group) => group.shown).map((group) => group.end - 1));
    this.tick = 0;
    this.playing = 0;
    this.hovered = null;
    this.tiles = [];
    this.node = el('div', { class: 'sample' }, el('p', { class: 'dim', text: 'Decoding pictures…' }));
    this.ready = this.evidence.decode().then(() => this._build());
  }

  seconds(tick) { return `${(tick / this.sample.fps).toFixed(this.sample.decimals)} s`; }
  groupOf(image) { return this.sample.groups.findIndex((group) => image >= group.first && image < group.first + group.count); }

  _build() {
    const { sample } = this;
    if (this.video) {
      this.timeline = new Timeline(sample, { onseek: (tick) => { this.pause(); this.seek(tick); }, ongroup: (index) => this._lightGroup(index) });
    }
    const head = el('div', { class: 'sample-head' },
      el('h3', { class: 'sample-id', text: sample.id }),
      el('p', { class: 'chips' }, sample.title.map((text) => el('span', { class: 'chip', text })), sample.flags.map((text) => el('span', { class: 'chip flag', text }))),
      el('p', { class: 'command' }, el('code', { text: sample.command }), copyButton(sample.command)));
    this.node.replaceChildren(head, ...sample.notes.map((text) => el('p', { class: 'note', text })),
      this.timeline ? this.timeline.node : '',
      el('div', { class: 'bench' }, this._canvases(), this._side()),
      el('div', { class: 'pair' }, this._text(), card('Provenance', facts(sample.provenance))));
    this.seek(0);
    this._setOverlay('none');
    this.hover(0, 0);
    this.node.dataset.ready = 'true';
  }

  // Canvases

  _canvases() {
    const { sample } = this;
    const modes = this.video ? [['none', 'Plain'], ['group', 'Time in group'], ['clip', 'Time in clip']] : [];
    this.overlayButtons = modes.map(([mode, name]) => el('button', { type: 'button', 'data-overlay': mode, text: name, onclick: () => this._setOverlay(mode) }));
    const ramp = el('span', { class: 'ramp' }, el('small', { text: 'old' }), el('i', {}), el('small', { text: 'new' }));
    const size = el('input', { type: 'range', min: 110, max: 460, value: this.video ? 200 : 460, 'aria-label': 'Size of the canvases', class: 'size' });
    const list = el('div', { class: 'groups' });
    if (!this.video) list.style.setProperty('--tile', '460px');
    size.addEventListener('input', () => list.style.setProperty('--tile', `${size.value}px`));
    const bar = el('div', { class: 'bar' }, el('h4', { text: sample.mode === 'codec' ? 'Canvases' : 'Images' }),
      modes.length > 0 && el('div', { class: 'segment', role: 'group', 'aria-label': 'Tint blocks by source time' }, this.overlayButtons), modes.length > 0 && ramp,
      el('label', { class: 'size-label' }, 'size', size));
    this.groupCards = sample.groups.map((group, index) => (group.shown ? this._groupCard(group, index) : null));
    list.append(...this.groupCards.filter(Boolean));
    return el('div', { class: 'canvases' }, bar, list);
  }

  _groupCard(group, index) {
    const tiles = Array.from({ length: group.count }, (_, i) => this._tile(group.first + i, i, index));
    const span = this.video ? `${this.seconds(group.start)} to ${this.seconds(group.end)}` : 'still';
    const title = el('b', { text: `Group ${index + 1}` });
    title.style.color = groupColour(index);
    const node = el('section', { class: 'group', 'data-group': index, 'aria-label': `Group ${index + 1}` },
      el('p', { class: 'group-title' }, title, el('span', { text: ` ${span}` }), this.video && el('span', { class: 'dim', text: ` · ${fmtInt(group.frames)} frame${group.frames > 1 ? 's' : ''} · ${fmtShare(group.bits)} of the bits` })),
      el('div', { class: 'tiles-row' }, tiles));
    node.style.setProperty('--group', groupColour(index));
    node.style.setProperty('--count', group.count);
    node.addEventListener('pointerenter', () => this.timeline && this.timeline.lightGroup(index));
    return node;
  }

  _tile(image, place, groupIndex) {
    const { sample, evidence } = this;
    const picture = evidence.pictures[image];
    const entry = sample.images[image];
    const whole = entry.place === null;
    const times = whole ? [entry.t] : entry.t;
    const low = Math.min(...times), high = Math.max(...times);
    const kind = sample.mode !== 'codec' ? 'frame' : place === 0 ? 'I' : `P${place}`;
    const name = !this.video ? 'whole image' : whole ? `${kind} · ${this.seconds(low)}` : `${kind} · ${this.seconds(low)} – ${this.seconds(high)}`;
    const tint = el('canvas', { class: 'tint', width: sample.columns, height: sample.rows, 'aria-hidden': 'true' });
    const cursor = el('i', { class: 'cursor', 'aria-hidden': 'true' });
    cursor.style.width = `${100 / sample.columns}%`;
    cursor.style.height = `${100 / sample.rows}%`;
    picture.alt = '';
    picture.draggable = false;
    const face = el('div', { class: 'face', tabindex: 0, role: 'application', 'data-image': image, 'aria-label': `Image ${image}, ${name}. Arrow keys move over its blocks, Enter goes to a block's time.` }, picture, tint, cursor);
    const at = (event) => {
      const box = face.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * sample.columns), row = Math.floor(((event.clientY - box.top) / box.height) * sample.rows);
      const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
      return clamp(row, sample.rows) * sample.columns + clamp(column, sample.columns);
    };
    face.addEventListener('pointermove', (event) => this.hover(image, at(event)));
    face.addEventListener('click', (event) => { this.hover(image, at(event)); this._goToHovered(); });
    face.addEventListener('focus', () => { if (!this.hovered || this.hovered.image !== image) this.hover(image, 0, true); });
    face.addEventListener('keydown', (event) => this._tileKey(event, image));
    this.tiles[image] = { face, tint, cursor, groupIndex };
    return el('figure', { class: whole ? 'tile-box whole' : 'tile-box' }, face, el('figcaption', { text: name }));
  }

  _tileKey(event, image) {
    const { columns, rows } = this.sample;
    const block = this.hovered && this.hovered.image === image ? this.hovered.block : 0;
    const row = Math.floor(block / columns), column = block % columns;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -column], End: [0, columns - 1 - column] };
    if (event.key === 'Enter' || event.key === ' ') this._goToHovered();
    else if (moves[event.key]) {
      const [down, right] = moves[event.key];
      this.hover(image, Math.min(Math.max(row + down, 0), rows - 1) * columns + Math.min(Math.max(column + right, 0), columns - 1), true);
    } else return;
    event.preventDefault();
  }

  _goToHovered() {
    if (!this.video || !this.hovered) return;
    this.pause();
    this.seek(this.hovered.t);
  }

  _setOverlay(mode) {
    this.overlayButtons.forEach((button) => button.setAttribute('aria-pressed', String(button.dataset.overlay === mode)));
    const { sample } = this;
    this.tiles.forEach(({ tint, groupIndex }, image) => {
      const context = tint.getContext('2d');
      context.clearRect(0, 0, tint.width, tint.height);
      if (mode === 'none') return;
      const group = sample.groups[groupIndex];
      const alpha = sample.images[image].place === null ? 0.28 : 0.5;
      const [start, end] = mode === 'group' ? [group.start, group.end] : [0, sample.endTick];
      for (let block = 0; block < this.evidence.cells; block++) {
        const t = this.evidence.timeOf(sample.images[image], block);
        context.fillStyle = `rgba(${rampColour((t - start) / Math.max(1, end - 1 - start)).join(',')},${alpha})`;
        context.fillRect(block % sample.columns, Math.floor(block / sample.columns), 1, 1);
      }
    });
    this.node.dataset.overlay = mode;
  }

  _lightGroup(index) {
    this.groupCards.forEach((node, i) => node && node.classList.toggle('lit', i === index));
    this.timeline.lightGroup(index);
  }

  // The side: rebuilt clip, and where the block under the pointer came from

  _side() {
    const { sample } = this;
    this.mini = el('canvas', { class: 'mini', width: sample.columns * sample.blockPx, height: sample.rows * sample.blockPx, role: 'img', 'aria-label': 'Where the block came from in its source frame' });
    this.miniMark = el('i', { class: 'mini-mark', 'aria-hidden': 'true' });
    this.miniMark.style.width = `${100 / sample.columns}%`;
    this.miniMark.style.height = `${100 / sample.rows}%`;
    this.zoom = el('canvas', { class: 'zoom', width: sample.blockPx, height: sample.blockPx, role: 'img', 'aria-label': 'The block' });
    const rows = [['time', 'Source time'], ['place', 'Place in the frame'], ['image', 'Canvas'], ['slot', 'Place in the canvas'], ['held', 'Held until'], ['peers', 'Taken at this time']];
    this.fields = {};
    const list = el('dl', { class: 'facts block-facts' }, rows.filter(([name]) => this.video || name !== 'time' && name !== 'held' && name !== 'peers').map(([name, label]) => {
      this.fields[name] = el('dd', { 'data-field': name });
      return el('div', {}, el('dt', { text: label }), this.fields[name]);
    }));
    this.spoken = el('p', { class: 'unseen', role: 'status' });
    const origin = el('section', { class: 'card origin' }, el('h4', { text: 'Block under the pointer' }),
      el('div', { class: 'origin-top' }, el('div', { class: 'mini-box' }, this.mini, this.miniMark), this.zoom), list, this.spoken);
    return el('aside', { class: 'side' }, this.video && this._player(), origin);
  }

  _player() {
    this.stage = new Stage(this.evidence);
    this.toggle = el('input', { type: 'checkbox', role: 'switch', class: 'rebuild', checked: true });
    this.scrub = el('input', { type: 'range', class: 'scrub', min: 0, max: this.lastTick, step: 1, value: 0, 'aria-label': 'Time of the rebuilt frame' });
    this.clock = el('output', { class: 'clock' });
    this.told = el('p', { class: 'told' });
    this.playButton = el('button', { type: 'button', class: 'play', 'aria-label': 'Play', text: '▶', onclick: () => (this.playing ? this.pause() : this.play()) });
    this.speed = el('select', { 'aria-label': 'Speed' }, [['0.25', '¼×'], ['0.5', '½×'], ['1', '1×'], ['2', '2×'], ['4', '4×']].map(([value, text]) => el('option', { value, text, selected: value === '1' })));
    this.toggle.addEventListener('change', () => this.seek(this.tick));
    this.scrub.addEventListener('input', () => { this.pause(); this.seek(Number(this.scrub.value)); });
    const step = (way) => {
      this.pause();
      const { times } = this.evidence;
      const next = way > 0 ? times.find((t) => t > this.tick) : times.filter((t) => t < this.tick).at(-1);
      if (next !== undefined) this.seek(next);
    };
    return el('section', { class: 'card player' },
      el('div', { class: 'bar' }, el('h4', { text: 'Clip as the evidence tells it' }), el('label', { class: 'switch' }, this.toggle, el('span', { text: 'Rebuild' }))),
      this.stage.node,
      el('div', { class: 'controls' },
        el('button', { type: 'button', class: 'quiet', 'aria-label': 'Previous evidence', text: '‹', onclick: () => step(-1) }), this.playButton,
        el('button', { type: 'button', class: 'quiet', 'aria-label': 'Next evidence', text: '›', onclick: () => step(1) }),
        this.scrub, this.clock, this.speed),
      this.told);
  }

  play() {
    if (this.tick >= this.lastTick) this.seek(0);
    let last = performance.now(), place = this.tick;
    const step = (now) => {
      place += ((now - last) / 1000) * this.sample.fps * Number(this.speed.value);
      last = now;
      if (Math.floor(place) > this.tick) this.seek(Math.min(Math.floor(place), this.lastTick));
      if (this.tick >= this.lastTick) this.pause();
      else this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
    this.playButton.textContent = '❚❚';
    this.playButton.setAttribute('aria-label', 'Pause');
  }

  pause() {
    cancelAnimationFrame(this.playing);
    this.playing = 0;
    if (!this.playButton) return;
    this.playButton.textContent = '▶';
    this.playButton.setAttribute('aria-label', 'Play');
  }

  // Show the clip at a tick: the latest block of each place, or the latest whole frame where rebuilding is off.
  seek(tick) {
    if (!this.video) return;
    this.tick = Math.min(Math.max(tick, 0), this.lastTick);
    const kind = this.toggle.checked ? 'all' : 'whole';
    const { events } = this.stage.show(this.tick, kind);
    this.scrub.value = this.tick;
    this.scrub.setAttribute('aria-valuetext', this.seconds(this.tick));
    this.clock.textContent = this.seconds(this.tick);
    this.timeline.place(this.tick);
    const given = events.filter(Boolean);
    const age = given.reduce((sum, event) => sum + this.tick - event.t, 0) / Math.max(1, given.length) / this.sample.fps;
    const fresh = given.filter((event) => event.t === this.tick).length;
    this.told.textContent = kind === 'all'
      ? `${fresh} of ${events.length} blocks from this very time; mean age ${age.toFixed(2)} s.`
      : `Whole frames alone: this one is ${age.toFixed(2)} s old. Switch Rebuild on to add the blocks given since.`;
  }

  // Tell where block `block` of image `image` came from.
  hover(image, block, aloud = false) {
    if (this.hovered && this.hovered.image === image && this.hovered.block === block) return;
    const { sample, evidence } = this;
    const entry = sample.images[image], t = evidence.timeOf(entry, block), place = evidence.placeOf(entry, block);
    if (this.hovered) this.tiles[this.hovered.image].cursor.classList.remove('on');
    this.hovered = { image, block, t, place };
    const { cursor, groupIndex } = this.tiles[image];
    const { rows, columns, blockPx } = sample;
    cursor.classList.add('on');
    cursor.style.left = `${((block % columns) * 100) / columns}%`;
    cursor.style.top = `${(Math.floor(block / columns) * 100) / rows}%`;
    this.miniMark.style.left = `${((place % columns) * 100) / columns}%`;
    this.miniMark.style.top = `${(Math.floor(place / columns) * 100) / rows}%`;

    const events = evidence.frame(t);
    events[place] = { t, place, image, block };
    this.miniShown = (evidence.draw(this.mini.getContext('2d'), events, this.miniShown), events);
    const zoom = this.zoom.getContext('2d');
    zoom.drawImage(evidence.pictures[image], (block % columns) * blockPx, Math.floor(block / columns) * blockPx, blockPx, blockPx, 0, 0, blockPx, blockPx);

    const row = Math.floor(place / columns), column = place % columns;
    const tell = (name, text) => { if (this.fields[name]) this.fields[name].textContent = text; };
    tell('place', `row ${row}, column ${column}`);
    tell('image', `image ${image}, group ${groupIndex + 1}`);
    tell('slot', `row ${Math.floor(block / columns)}, column ${block % columns}`);
    if (this.video) {
      const until = evidence.heldUntil(this.hovered);
      tell('time', `${this.seconds(t)}   (t = ${t})`);
      tell('held', until === null ? 'the end' : `${this.seconds(until)}, for ${this.seconds(until - t)}`);
      tell('peers', `${evidence.countAt.get(t)} block${evidence.countAt.get(t) > 1 ? 's' : ''}`);
      this.timeline.point(t);
    }
    if (aloud) this.spoken.textContent = `${this.video ? this.seconds(t) + ', ' : ''}row ${row}, column ${column}`;
  }

  // Text

  _text() {
    const { sample } = this;
    const most = 12;
    const chip = ([t, tag, count]) => el('button', { type: 'button', class: 'run', title: `${tag}<|vision_start|><|image_pad|>×${count}<|vision_end|>`,
      onclick: () => { if (this.video) { this.pause(); this.seek(t); this.timeline.point(t); } } }, el('span', { text: tag || 'image' }), el('b', { text: '×' + fmtInt(count) }));
    const runs = () => {
      const box = el('span', { class: 'runs' }, sample.runs.slice(0, most).map(chip));
      const left = sample.numRuns - Math.min(most, sample.runs.length);
      if (left > 0) {
        const more = el('button', { type: 'button', class: 'quiet', text: `${fmtInt(left)} more vision runs` });
        more.addEventListener('click', () => {
          more.replaceWith(...sample.runs.slice(most).map(chip));
          if (sample.numRuns > sample.runs.length) box.append(el('span', { class: 'dim', text: `and ${fmtInt(sample.numRuns - sample.runs.length)} more` }));
        });
        box.append(more);
      }
      return box;
    };
    const turns = sample.turns.map(([role, before, after]) => el('div', { class: 'turn ' + role },
      el('span', { class: 'role' }, role, role === 'assistant' && el('em', { text: 'learned' })),
      el('div', { class: 'said' }, before && el('span', { text: before }), after !== null && runs(), after && el('span', { text: after }))));
    return card('What the model reads', turns);
  }
}

function renderSamples(run) {
  const part = el('section', { id: 'samples', class: 'part' }, el('h2', { text: 'Samples' }));
  if (!run.num_shown) return part.append(el('p', { class: 'card dim', text: 'No committed sample to show.' })), part;
  const data = Array.from({ length: run.num_shown }, (_, i) => readJson(`sample-data-${i}`));
  const panel = el('div', { class: 'panel', role: 'tabpanel', id: 'sample-panel', tabindex: -1 });
  const views = new Map();
  const tabs = data.map((sample, index) => {
    const cover = sample.images && el('img', { src: sample.images[0].src, alt: '' });
    return el('button', { type: 'button', role: 'tab', 'aria-controls': 'sample-panel', id: `tab-${index}`, onclick: () => open(index) },
      cover, el('span', {}, el('b', { text: sample.id }), el('small', { text: sample.error ? 'cannot be read' : sample.title.slice(0, 2).join(' · ') })));
  });
  const open = (index) => {
    for (const view of views.values()) view.pause();
    tabs.forEach((tab, i) => { tab.setAttribute('aria-selected', String(i === index)); tab.tabIndex = i === index ? 0 : -1; });
    panel.setAttribute('aria-labelledby', `tab-${index}`);
    if (data[index].error) return panel.replaceChildren(el('p', { class: 'note', text: `${data[index].key}: ${data[index].error}` }));
    if (!views.has(index)) views.set(index, new SampleView(data[index]));
    panel.replaceChildren(views.get(index).node);
  };
  const list = el('div', { class: 'tabs', role: 'tablist', 'aria-label': 'Samples' }, tabs);
  list.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    open(next);
    tabs[next].focus();
  });
  part.append(el('p', { class: 'dim', text: `${run.num_shown} of ${fmtInt(run.committed)}, spread evenly over the manifest.` }), list, panel);
  open(0);
  return part;
}

const run = readJson('run-data');
document.getElementById('main').replaceChildren(renderHeader(run), renderNav(run), renderOverview(run), renderDistributions(run), renderLeftOut(run), renderSamples(run), renderAbout(run));
