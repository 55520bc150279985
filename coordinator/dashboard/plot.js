// One line plot of the last minutes: time to the left, now at the right edge. The legend shows the
// newest values, or those under the cursor; plots that share a cursor move it together.

import { make, setText } from './dom.js';

const SVG = 'http://www.w3.org/2000/svg';
const HEIGHT = 148;
const MARGIN = { top: 8, right: 10, bottom: 20, left: 46 };

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** Steps of 1, 2 or 5 times a power of ten that split [0, max] into at most four. */
export function axisStep(max, least) {
  const rough = Math.max(max / 4, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5, 10].find((each) => each * power >= rough * (1 - 1e-9));
  return factor * power;
}

/** The sample under the cursor, counted from the newest (0); null: no cursor. */
export class Cursor {
  at = null;
  #listeners = [];
  onMove(listener) {
    this.#listeners.push(listener);
  }
  move(at) {
    this.at = at;
    for (const listener of this.#listeners) listener();
  }
}

export class Plot {
  /**
   * `title`; `format(value)` with its unit for the legend, `tick(value, top)` for the axis, which
   * ends at `top`; `least`: smallest step of the axis; `series`: [{ name, field }] of the
   * history, the first one drawn as an area.
   */
  constructor(figure, cursor, options) {
    this.figure = figure;
    this.cursor = cursor;
    this.options = options;
    this.history = null;
    this.width = 0;

    this.values = options.series.map(() => make('b', {}, '–'));
    const legend = make('ul', { className: 'legend' });
    options.series.forEach((series, i) => {
      const item = make('li', { className: `swatch series-${i}` }, `${series.name} `, this.values[i]);
      legend.append(item);
    });
    const caption = make('figcaption', {}, make('span', { className: 'name' }, options.title), legend);
    this.svg = document.createElementNS(SVG, 'svg');
    this.svg.setAttribute('height', HEIGHT);
    this.svg.setAttribute('role', 'img');
    this.svg.setAttribute('tabindex', '0');
    this.empty = make('p', { className: 'empty' }, 'Waiting for the first samples');
    figure.append(caption, this.svg, this.empty);

    new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width)).observe(figure);
    this.svg.addEventListener('pointermove', (event) => this.#point(event));
    this.svg.addEventListener('pointerdown', (event) => this.#point(event));
    this.svg.addEventListener('pointerleave', () => cursor.move(null));
    this.svg.addEventListener('blur', () => cursor.move(null));
    this.svg.addEventListener('keydown', (event) => this.#key(event));
    cursor.onMove(() => this.#showCursor());
  }

  update(history) {
    this.history = history;
    this.#render();
  }

  get #samples() {
    return this.history ? this.history.age_s.length : 0;
  }

  #resize(width) {
    this.width = Math.floor(width);
    this.svg.setAttribute('width', this.width);
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${HEIGHT}`);
    this.#render();
  }

  #x(age) {
    const inner = this.width - MARGIN.left - MARGIN.right;
    return MARGIN.left + inner * (1 - Math.min(age / this.history.window_s, 1));
  }

  #y(value) {
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    return MARGIN.top + inner * (1 - value / this.top);
  }

  #render() {
    if (!this.history || this.width < 100) return;
    const { series, tick, least } = this.options;
    this.empty.hidden = this.#samples > 0;
    const all = series.flatMap((each) => this.history[each.field]).filter((value) => value !== null);
    const max = Math.max(0, ...all);
    const step = axisStep(max, least);
    this.top = Math.max(Math.ceil(max / step - 1e-9), 2) * step;

    this.svg.replaceChildren();
    for (let value = 0; value <= this.top * (1 + 1e-9); value += step) {
      const y = Math.round(this.#y(value)) + 0.5;
      const line = { x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y };
      draw(this.svg, 'line', { ...line, class: value === 0 ? 'axis' : 'grid' });
      draw(this.svg, 'text', { x: MARGIN.left - 6, y: y + 3.5, 'text-anchor': 'end' }, tick(value, this.top));
    }
    const minutes = Math.round(this.history.window_s / 60);
    for (let minute = 0; minute <= minutes; ++minute) {
      // On a phone it would touch its neighbour.
      if (minute === minutes - 1 && this.width < 340) continue;
      const x = this.#x(60 * minute);
      const anchor = minute === 0 ? 'end' : minute === minutes ? 'start' : 'middle';
      const text = minute === 0 ? 'now' : minute === minutes ? `−${minute} min` : `−${minute}`;
      draw(this.svg, 'text', { x, y: HEIGHT - 5, 'text-anchor': anchor }, text);
    }
    // Drawn backwards, so that the first series lies on top.
    for (let i = series.length - 1; i >= 0; --i) this.#drawSeries(series[i].field, i);
    this.mark = draw(this.svg, 'g', { class: 'mark' });
    this.#showCursor();
  }

  #drawSeries(field, index) {
    // Runs of samples without a gap.
    const runs = [];
    let run = null;
    this.history[field].forEach((value, i) => {
      if (value === null) {
        run = null;
        return;
      }
      if (!run) runs.push((run = []));
      run.push([this.#x(this.history.age_s[i]), this.#y(value)]);
    });
    const base = this.#y(0);
    for (const points of runs) {
      const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join('L');
      if (index === 0 && points.length > 1) {
        const area = `M${points[0][0].toFixed(1)},${base}L${line}L${points.at(-1)[0].toFixed(1)},${base}Z`;
        draw(this.svg, 'path', { d: area, class: 'area' });
      }
      if (points.length === 1) {
        draw(this.svg, 'circle', { cx: points[0][0], cy: points[0][1], r: 1.5, class: `dot-${index}` });
      } else {
        draw(this.svg, 'path', { d: `M${line}`, class: `line line-${index}` });
      }
    }
  }

  #showCursor() {
    if (!this.history || !this.mark) return;
    const newest = this.#samples - 1;
    const at = newest - Math.min(this.cursor.at ?? 0, Math.max(newest, 0));
    const { series, format } = this.options;
    const texts = series.map(({ field }) => format(this.history[field][at]));
    texts.forEach((text, i) => setText(this.values[i], text));
    const said = series.map(({ name }, i) => `${name} ${texts[i]}`).join(', ');
    this.svg.setAttribute('aria-label', `${this.options.title}: ${said}. Arrow keys look back.`);
    this.mark.replaceChildren();
    if (this.cursor.at === null || newest < 0) return;
    const x = this.#x(this.history.age_s[at]);
    draw(this.mark, 'line', { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    series.forEach(({ field }, i) => {
      const value = this.history[field][at];
      if (value === null) return;
      draw(this.mark, 'circle', { cx: x, cy: this.#y(value), r: 3, class: `dot-${i}` });
    });
  }

  #point(event) {
    if (this.#samples === 0) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    let nearest = 0;
    this.history.age_s.forEach((age, i) => {
      if (Math.abs(this.#x(age) - x) < Math.abs(this.#x(this.history.age_s[nearest]) - x)) nearest = i;
    });
    this.cursor.move(this.#samples - 1 - nearest);
  }

  #key(event) {
    const oldest = this.#samples - 1;
    const at = this.cursor.at;
    const moves = {
      ArrowLeft: () => Math.min((at ?? -1) + 1, oldest),
      ArrowRight: () => Math.max((at ?? 0) - 1, 0),
      Home: () => oldest,
      End: () => 0,
      Escape: () => null,
    };
    if (!(event.key in moves) || oldest < 0) return;
    event.preventDefault();
    this.cursor.move(moves[event.key]());
  }
}
