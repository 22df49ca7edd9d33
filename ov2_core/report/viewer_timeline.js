// The timeline of a sample: bit cost, groups, evidence over time, the playhead, and the tick of the block under the pointer.
'use strict';

const TIMELINE = { cost: 62, groups: 24, evidence: 34, axis: 20, gap: 6 };

class Timeline {
  constructor(sample, { onseek, ongroup }) {
    this.sample = sample;
    this.onseek = onseek;
    this.ongroup = ongroup;
    this.tick = 0;
    this.mark = null;
    this.chart = svg('svg', { class: 'timeline', tabindex: 0, role: 'slider', 'aria-label': 'Time',
      'aria-valuemin': 0, 'aria-valuemax': Math.max(0, sample.endTick - 1) });
    this.line = el('p', { class: 'timeline-line', 'aria-live': 'off' });
    this.node = el('div', { class: 'timeline-box' }, this.chart, this.line);
    this.chart.addEventListener('pointerdown', (event) => this._seekTo(event));
    this.chart.addEventListener('pointermove', (event) => {
      if (event.buttons) this._seekTo(event);
      else this._say(this._tickAt(event));
    });
    this.chart.addEventListener('pointerleave', () => { this.line.textContent = this.hint(); });
    this.chart.addEventListener('keydown', (event) => this._key(event));
    new ResizeObserver(() => this.layout()).observe(this.node);
    this.line.textContent = this.hint();
  }

  hint() {
    const { sample } = this;
    return `Bit cost of the clip, its ${sample.groups.length} group${sample.groups.length > 1 ? 's' : ''}, and the blocks taken over time. Point at it, or click to go there.`;
  }

  seconds(tick) { return `${(tick / this.sample.fps).toFixed(this.sample.decimals)} s`; }
  x(tick) { return (tick / Math.max(1, this.sample.endTick)) * this.width; }
  _tickAt(event) {
    const box = this.chart.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    return Math.min(Math.floor(share * this.sample.endTick), this.sample.endTick - 1);
  }
  _seekTo(event) {
    const tick = this._tickAt(event);
    this._say(tick);
    this.onseek(tick);
  }
  groupAt(tick) { return this.sample.groups.findIndex((group) => tick >= group.start && tick < group.end); }

  _say(tick) {
    const index = this.groupAt(tick);
    const group = this.sample.groups[index];
    this.line.replaceChildren(el('b', { text: this.seconds(tick) }));
    if (!group) return;
    const name = el('b', { class: 'group-name', text: `group ${index + 1}` });
    name.style.color = groupColour(index);
    this.line.append('  ·  ', name, `: ${this.seconds(group.start)} to ${this.seconds(group.end)}, ${fmtInt(group.frames)} frames, `
      + `${group.count} images, ${fmtInt(group.tokens)} tokens, ${fmtShare(group.bits)} of the bits${group.shown ? '' : ', not shown below'}`);
    this.ongroup(index);
  }

  _key(event) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    let tick = null;
    if (step) tick = this.tick + step;
    else if (event.key === 'Home') tick = 0;
    else if (event.key === 'End') tick = this.sample.endTick - 1;
    else if (event.key === 'PageUp' || event.key === 'PageDown') {
      const starts = this.sample.groups.map((group) => group.start);
      tick = event.key === 'PageDown' ? starts.find((start) => start > this.tick) : starts.filter((start) => start < this.tick).at(-1);
    }
    if (tick === null || tick === undefined) return;
    event.preventDefault();
    tick = Math.min(Math.max(tick, 0), this.sample.endTick - 1);
    this.onseek(tick);
    this._say(tick);
  }

  layout() {
    const width = Math.floor(this.node.clientWidth);
    if (!width || width === this.width) return;
    this.width = width;
    const { cost, groups, evidence, axis, gap } = TIMELINE;
    const height = cost + groups + evidence + axis + 2 * gap;
    this.chart.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.chart.setAttribute('height', height);
    this.chart.replaceChildren(this._cost(), this._groups(cost + gap), this._evidence(cost + groups + 2 * gap), this._axis(height - axis));
    this.head = svg('g', { class: 'playhead' }, svg('line', { y1: 0, y2: height - axis }), svg('path', { d: 'M-5 0 H5 L0 7 Z' }));
    this.markNode = svg('g', { class: 'mark' }, svg('line', { y1: 0, y2: height - axis + 4 }), svg('text', { y: height - 5, 'text-anchor': 'middle' }));
    this.chart.append(this.markNode, this.head);
    this.place(this.tick);
    this.point(this.mark);
  }

  _cost() {
    const { bitCost, fps, endTick } = this.sample;
    const most = Math.max(...bitCost, 1e-9), step = this.width / Math.max(1, bitCost.length);
    let path = `M0 ${TIMELINE.cost}`;
    bitCost.forEach((value, i) => {
      const y = (TIMELINE.cost - 2 - Math.sqrt(value / most) * (TIMELINE.cost - 8)).toFixed(1);
      path += ` L${(i * step).toFixed(1)} ${y} L${((i + 1) * step).toFixed(1)} ${y}`;
    });
    return svg('g', { class: 'cost' }, svg('path', { d: `${path} L${this.width} ${TIMELINE.cost} Z` }),
      svg('text', { x: 4, y: 11, text: 'bit cost (square root)' }),
      this.sample.groups.slice(1).map((group) => svg('line', { class: 'cut', x1: this.x(group.start), x2: this.x(group.start), y1: 0, y2: TIMELINE.cost })),
      svg('title', { text: `${bitCost.length} bins over ${(endTick / fps).toFixed(1)} s` }));
  }

  _groups(top) {
    return svg('g', { class: 'bands' }, this.sample.groups.map((group, index) => {
      const left = this.x(group.start), width = Math.max(1, this.x(group.end) - left);
      const band = svg('g', { class: group.shown ? 'band' : 'band hidden', 'data-group': index },
        svg('rect', { x: left + 0.5, y: top, width: Math.max(0.5, width - 1), height: TIMELINE.groups, rx: Math.min(4, width / 4), fill: groupColour(index) }),
        width > 22 && svg('text', { x: left + width / 2, y: top + 16, 'text-anchor': 'middle', text: index + 1 }));
      return band;
    }));
  }

  // One bar a pixel column: blocks taken there; a diamond where a whole frame was taken.
  _evidence(top) {
    const bars = new Map(), wholes = [];
    for (const [t, blocks, whole] of this.sample.evidence) {
      const column = Math.floor(this.x(t) / 3) * 3, index = Math.max(0, this.groupAt(t));
      if (blocks) bars.set(column, { n: (bars.get(column)?.n || 0) + blocks, index });
      if (whole) wholes.push([this.x(t), index]);
    }
    const most = Math.max(1, ...[...bars.values()].map(({ n }) => n)), full = TIMELINE.evidence - 10, base = top + TIMELINE.evidence - 1;
    const dense = wholes.length > this.width / 9;
    return svg('g', { class: 'evidence' },
      svg('line', { class: 'axis', x1: 0, x2: this.width, y1: base + 0.5, y2: base + 0.5 }),
      [...bars].map(([x, { n, index }]) => {
        const tall = 2 + (n / most) * (full - 2);
        return svg('rect', { x, y: base - tall, width: 2.2, height: tall, fill: groupColour(index) });
      }),
      wholes.map(([x, index]) => dense
        ? svg('rect', { x, y: top + 2, width: 1, height: 6, fill: groupColour(index) })
        : svg('path', { class: 'whole', d: `M${x} ${top} l4 4.5 -4 4.5 -4 -4.5 Z`, fill: groupColour(index) })));
  }

  _axis(top) {
    const total = this.sample.endTick / this.sample.fps, raw = total / Math.max(2, this.width / 90);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const axis = svg('g', { class: 'ticks' });
    for (let i = 0; i * step <= total + 1e-9; i++) {
      const x = this.x(i * step * this.sample.fps);
      const anchor = x < 14 ? 'start' : x > this.width - 18 ? 'end' : 'middle';
      axis.append(svg('line', { x1: x, x2: x, y1: top, y2: top + 4 }), svg('text', { x, y: top + 15, 'text-anchor': anchor, text: `${(i * step).toFixed(decimals)} s` }));
    }
    return axis;
  }

  place(tick) {
    this.tick = tick;
    this.chart.setAttribute('aria-valuenow', tick);
    this.chart.setAttribute('aria-valuetext', this.seconds(tick));
    if (this.head) this.head.setAttribute('transform', `translate(${this.x(tick).toFixed(1)} 0)`);
  }

  // The source time of the block under the pointer; null takes the mark away.
  point(tick) {
    this.mark = tick;
    if (!this.markNode) return;
    this.markNode.classList.toggle('on', tick !== null);
    if (tick === null) return;
    this.markNode.setAttribute('data-t', tick);
    const x = this.x(tick), [line, text] = this.markNode.children;
    line.setAttribute('x1', x);
    line.setAttribute('x2', x);
    text.setAttribute('x', Math.min(Math.max(x, 22), this.width - 22));
    text.textContent = this.seconds(tick);
  }

  lightGroup(index) {
    for (const band of this.chart.querySelectorAll('.band')) band.classList.toggle('lit', Number(band.dataset.group) === index);
  }
}
