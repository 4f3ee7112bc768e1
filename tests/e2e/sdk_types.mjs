// What the SDKs declare: the types of requests and answers, read from their own declaration files, so that a new version of one
// shows here which fields are new.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const COMMENT = /\/\*[^]*?\*\//g;

/** The text of a declaration file of an SDK. */
export const declarationsOf = (sdk, file) =>
  readFileSync(path.join(path.dirname(createRequire(import.meta.url).resolve(sdk)), file), 'utf8');

/** The pieces of a text between separators that stand in no bracket and no quotes. */
function split(text, separator) {
  const pieces = [''];
  let depth = 0;
  for (const [token] of text.matchAll(/'[^']*'|=>|[^]/g)) {
    if ('<{[('.includes(token)) depth++;
    if ('>}])'.includes(token)) depth--;
    if (token === separator && depth === 0) pieces.push('');
    else pieces[pieces.length - 1] += token;
  }
  return pieces.map((piece) => piece.trim()).filter(Boolean);
}

/** The text from the bracket at `start` to the one that closes it, without both. */
function inBrackets(text, start) {
  let depth = 0;
  for (let at = start; at < text.length; at++) {
    depth += '{['.includes(text[at]) - '}]'.includes(text[at]);
    if (depth === 0) return text.slice(start + 1, at);
  }
  throw new Error('a bracket is not closed');
}

/** Reads types out of one declaration file. */
export class Declarations {
  constructor(sdk, file) {
    // A parameter of the head is no part of the body.
    const header = /\/\*\*\s*\* Header param:[^]*?\*\/\s*\w+\??:[^;]*;/g;
    this.text = declarationsOf(sdk, file).replace(header, '').replace(COMMENT, '');
  }

  /** The fields of an object type, name to type; undefined for any other type. */
  fieldsOf(type) {
    const name = type.split('.').pop();
    const holder = type.split('.').at(-2);
    const body = type.startsWith('{') ? type.slice(1, -1) : this.#bodyOf(name, holder);
    if (body === undefined) return undefined;
    const members = split(body, ';').map((member) => /^(?:readonly )?(\w+)\??:([^]*)$/.exec(member));
    return Object.fromEntries(members.filter(Boolean).map(([, field, its]) => [field, its.trim()]));
  }

  #bodyOf(name, holder) {
    const space = new RegExp(`namespace ${holder} \\{`).exec(this.text);
    const text = space ? inBrackets(this.text, space.index + space[0].length - 1) : this.text;
    const found = new RegExp(`interface ${name}( extends [^{]*)?\\s*\\{`).exec(text);
    if (!found) return undefined;
    const parent = found[1]?.replace(' extends ', '').trim();
    const inherited = parent ? (this.#bodyOf(parent.split('.').pop(), parent.split('.').at(-2)) ?? '') : '';
    return `${inherited};${inBrackets(text, found.index + found[0].length - 1)}`;
  }

  /** The alternatives of a type, names of unions resolved; `null` is none. */
  alternativesOf(type) {
    return split(type, '|').flatMap((one) => {
      const inner = /^\(([^]*)\)$/.exec(one)?.[1];
      const alias = new RegExp(`type ${one.split('.').pop()} =([^;]*);`).exec(/^[\w.]+$/.test(one) ? this.text : '');
      if (one === 'null' || one === 'undefined') return [];
      return inner || alias ? this.alternativesOf(inner ?? alias[1]) : [one];
    });
  }

  /**
   * The fields of a type that hold no further fields, as {path, type} with `type` one of string, number, boolean, unknown, or
   * the array of its values. Where a type has alternatives, the path tells which: `content[](text).citations`, by their `type`.
   */
  leavesOf(type, path = '', within = []) {
    const all = this.alternativesOf(type);
    const literals = all.filter((one) => /^'/.test(one));
    if (literals.length && literals.length === all.length) return [{ path, type: literals.map((one) => one.slice(1, -1)) }];
    const objects = all.filter((one) => this.fieldsOf(one));
    return all.flatMap((one) => {
      const element = /^Array<([^]*)>$/.exec(one)?.[1];
      if (element) return this.leavesOf(element, `${path}[]`, within);
      const fields = this.fieldsOf(one);
      if (!fields || within.includes(one)) return [{ path, type: /^(string|number|boolean)$/.test(one) ? one : 'unknown' }];
      const kind = /^'(\w+)'/.exec(fields.type ?? '')?.[1] ?? one;
      const at = objects.length > 1 ? `${path}(${kind})` : path;
      const names = Object.keys(fields).filter((name) => name !== 'type');
      return names.flatMap((name) => this.leavesOf(fields[name], `${at}.${name}`, [...within, one]));
    });
  }
}
