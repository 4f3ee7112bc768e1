import { suite } from './harness.mjs'; export const readme = suite();
