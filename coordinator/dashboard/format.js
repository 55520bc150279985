// Numbers as people read them. Base units in, text out; null and NaN become a dash.

const DASH = '–';
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

/** Three significant digits, no exponent: 0.042, 1.50, 23.4, 1234. */
export function number(value) {
  if (!isNumber(value)) return DASH;
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.1) return value.toFixed(2);
  return value.toPrecision(2);
}

export function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString('en') : DASH;
}

export function percent(share) {
  return isNumber(share) ? `${Math.round(100 * share)} %` : DASH;
}

export function bytes(value) {
  if (!isNumber(value)) return DASH;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1000 && unit + 1 < units.length) {
    value /= 1024;
    ++unit;
  }
  return `${unit === 0 ? value : number(value)} ${units[unit]}`;
}

/** A latency: 3.2 ms, 420 ms, 1.50 s. */
export function seconds(value) {
  if (!isNumber(value)) return DASH;
  if (value > 0 && value < 1) return `${number(1000 * value)} ms`;
  return `${number(value)} s`;
}

/** A number at an axis: no more digits than it has. */
export function tick(value) {
  return value >= 10000 ? `${Number((value / 1000).toPrecision(3))}k` : String(Number(value.toPrecision(3)));
}

/** A time at an axis that ends at `top`: all of its ticks in one unit. */
export function secondsTick(value, top) {
  return top < 1 ? `${tick(1000 * value)} ms` : `${tick(value)} s`;
}

/** How old something is: 12 s, 4 min, 3 h, 2 d. */
export function age(value) {
  if (!isNumber(value)) return DASH;
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 7200) return `${Math.floor(value / 60)} min`;
  if (value < 172800) return `${Math.floor(value / 3600)} h`;
  return `${Math.floor(value / 86400)} d`;
}
