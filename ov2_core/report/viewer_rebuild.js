// Evidence: blocks in the order of their source time, and the frame that they tell at any tick.
// Hold rule, as in ov2_core/report/rebuild.py: a place shows the latest block given up to the tick; of two with one time,
// the later image wins. Places without a block so far are grey.
'use strict';

const UNSEEN_GREY = 'rgb(128,128,128)';

class Evidence {
  constructor(sample) {
    this.sample = sample;
    this.cells = sample.rows * sample.columns;
    const events = [];
    sample.images.forEach((image, i) => {
      for (let block = 0; block < this.cells; block++) {
        events.push({ t: this.timeOf(image, block), place: this.placeOf(image, block), image: i, block, whole: image.place === null });
      }
    });
    events.sort((a, b) => a.t - b.t || a.image - b.image || a.block - b.block);
    this.events = events;
    this.byPlace = { all: this._group(events), whole: this._group(events.filter((event) => event.whole)) };
    this.countAt = new Map();
    for (const event of events) this.countAt.set(event.t, (this.countAt.get(event.t) || 0) + 1);
    this.times = [...this.countAt.keys()].sort((a, b) => a - b);
    this.pictures = [];
  }

  timeOf(image, block) { return typeof image.t === 'number' ? image.t : image.t[block]; }
  placeOf(image, block) { return image.place === null ? block : image.place[block]; }

  _group(events) {
    const lists = Array.from({ length: this.cells }, () => []);
    for (const event of events) lists[event.place].push(event);
    return lists;
  }

  async decode() {
    this.pictures = await Promise.all(this.sample.images.map(async ({ src }) => {
      const picture = new Image();
      picture.src = src;
      await picture.decode();
      return picture;
    }));
  }

  // The latest event of a place up to a tick, or null.
  latest(place, tick, kind) {
    const list = this.byPlace[kind][place];
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle].t <= tick) low = middle + 1; else high = middle;
    }
    return low ? list[low - 1] : null;
  }

  frame(tick, kind = 'all') {
    return Array.from({ length: this.cells }, (_, place) => this.latest(place, tick, kind));
  }

  // The tick at which the place of an event gets its next block; null where it keeps this one.
  heldUntil(event) {
    const next = this.byPlace.all[event.place].find((other) => other.t > event.t);
    return next ? next.t : null;
  }

  // Draw the places whose event differs from what the canvas shows; returns them.
  draw(context, events, shown) {
    const side = this.sample.blockPx, changed = [];
    context.imageSmoothingEnabled = false;
    events.forEach((event, place) => {
      if (shown && shown[place] === event) return;
      changed.push(place);
      const x = (place % this.sample.columns) * side, y = Math.floor(place / this.sample.columns) * side;
      if (event === null) {
        context.fillStyle = UNSEEN_GREY;
        context.fillRect(x, y, side, side);
      } else {
        const sx = (event.block % this.sample.columns) * side, sy = Math.floor(event.block / this.sample.columns) * side;
        context.drawImage(this.pictures[event.image], sx, sy, side, side, x, y, side, side);
      }
    });
    return changed;
  }
}

// A canvas with a frame on it, a second one above for outlines that fade.
class Stage {
  constructor(evidence) {
    const { sample } = evidence;
    this.evidence = evidence;
    const size = { width: sample.columns * sample.blockPx, height: sample.rows * sample.blockPx };
    this.canvas = el('canvas', { class: 'stage', role: 'img', 'aria-label': 'The frame rebuilt from the evidence given so far', ...size });
    this.context = this.canvas.getContext('2d', { willReadFrequently: true });
    this.glow = el('canvas', { class: 'glow', 'aria-hidden': 'true', width: sample.columns * 28, height: sample.rows * 28 });
    this.node = el('div', { class: 'stage-box' }, this.canvas, this.glow);
    this.shown = null;
    this.births = new Map();
    this.fading = 0;
    this.still = matchMedia('(prefers-reduced-motion: reduce)');
  }

  show(tick, kind) {
    const events = this.evidence.frame(tick, kind);
    const changed = this.evidence.draw(this.context, events, this.shown);
    if (this.shown && changed.length < events.length) this._flash(changed);
    else this.births.clear();
    this.shown = events;
    return { events, changed };
  }

  _flash(places) {
    const now = performance.now();
    if (this.still.matches) this.births.clear();
    for (const place of places) this.births.set(place, now);
    if (!this.fading) this.fading = requestAnimationFrame(() => this._fade());
  }

  _fade() {
    const context = this.glow.getContext('2d'), side = 28, columns = this.evidence.sample.columns, now = performance.now();
    context.clearRect(0, 0, this.glow.width, this.glow.height);
    for (const [place, born] of this.births) {
      const age = this.still.matches ? 0.3 : (now - born) / 650;
      if (age >= 1) { this.births.delete(place); continue; }
      const x = (place % columns) * side, y = Math.floor(place / columns) * side;
      context.globalAlpha = 1 - age;
      context.lineWidth = 2;
      context.strokeStyle = '#ffd43b';
      context.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
    }
    this.fading = this.births.size && !this.still.matches ? requestAnimationFrame(() => this._fade()) : 0;
  }
}
