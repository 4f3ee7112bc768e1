// What the soak reckons with: numbers that a seed repeats, tallies, percentiles, and how they are told.

/** A small generator of numbers from 0 to 1 that a seed repeats. */
export function randomFrom(seed) {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  random.between = (low, high) => low + Math.floor(random() * (high - low + 1));
  random.of = (list) => list[Math.floor(random() * list.length)];
  /** One of {name: weight}. */
  random.weighed = (weights) => {
    let left = random() * Object.values(weights).reduce((sum, weight) => sum + weight, 0);
    return Object.keys(weights).find((name) => (left -= weights[name]) < 0);
  };
  return random;
}

export class Tally extends Map {
  add(name, count = 1) {
    this.set(name, this.of(name) + count);
  }

  of(name) {
    return this.get(name) ?? 0;
  }

  /** The sum of what matches. */
  sum(matches = () => true) {
    return [...this].filter(([name]) => matches(name)).reduce((sum, [, count]) => sum + count, 0);
  }
}

const at = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];

/** Times in ms by kind. */
export class Times {
  #kinds = new Map();

  add(kind, ms) {
    if (!this.#kinds.has(kind)) this.#kinds.set(kind, []);
    this.#kinds.get(kind).push(ms);
  }

  /** Lines of a table. */
  lines() {
    return [...this.#kinds].sort().map(([kind, values]) => {
      const sorted = values.sort((a, b) => a - b);
      const figures = [0.5, 0.9, 0.99].map((share) => at(sorted, share).toFixed(0).padStart(8));
      return `${kind.padEnd(34)}${String(sorted.length).padStart(7)}${figures.join('')}`;
    });
  }
}

/** Faults of the proxy by kind, each kind with its first cases. */
export class Verdicts {
  passed = 0;
  #failures = new Map();

  fail(kind, detail) {
    const one = this.#failures.get(kind) ?? { count: 0, details: [] };
    this.#failures.set(kind, one);
    if (one.details.length < 3) {
      one.details.push(detail);
      console.log(`FAULT ${kind}: ${detail}`.slice(0, 1200)); // at once: a run may be ended
    }
    one.count++;
  }

  get kinds() {
    return [...this.#failures].map(([kind, { count }]) => `${kind} (${count} times)`);
  }

  /** One line for each thing that was looked at: it holds when no fault of these kinds was found. */
  judge(what, kinds) {
    const found = kinds.filter((kind) => this.#failures.has(kind));
    if (!found.length) this.passed++;
    console.log(`${found.length ? 'FAIL' : 'PASS'}  ${what}${found.length ? `: ${found.join(', ')}` : ''}`);
    return found.length === 0;
  }
}
