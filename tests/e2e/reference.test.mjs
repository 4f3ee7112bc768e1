import { suite } from './harness.mjs'; export const reference = suite();
