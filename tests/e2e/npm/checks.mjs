// Runs the checks of a client's program, one after the other, and prints a line of JSON for each.
// Standard input is JSON: {url, model, key, texts: {name of a check: what its user says}}.

import { readFileSync } from 'node:fs';
import { z } from 'zod';

export const given = JSON.parse(readFileSync(0, 'utf8'));
export const City = z.object({ city: z.string() });
export const Person = z.object({ name: z.string(), age: z.number().int() });
export const weatherOf = ({ city }) => `${city}: sunny`;

/** Runs a check with its text; what it resolves to, or its error, is its line. */
export async function check(name, body) {
  const line = { check: name };
  try {
    line.value = await body(given.texts[name]);
  } catch (error) {
    line.error = `${error.stack}\n${JSON.stringify(error)}`;
  }
  console.log(`\n${JSON.stringify(line)}`);
}

/** The error of a promise that must be rejected. */
export async function rejected(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('it was not rejected');
}
