// Takes the picture of the page that the README shows: the demo, with one answer in its chat.
//
//   node picture.mjs [FILE]      (docs/page.png; $PROXY names the program)

import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEMO } from './demo.test.mjs';
import { startProxy } from './harness.mjs';
import { browser } from './page.test.mjs';

export const PICTURE = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..', 'docs', 'page.png');
/** The demo with the model that is the program's default. */
export const PICTURED = { ...DEMO, env: { ...DEMO.env, DEFAULT_MODEL: undefined } };
export const SIZE = { width: 1280, height: 720 };
const QUESTION = '/say Hello! This is the demo: no account, no network. Point your own client at this address.';

/** Opens the page of this demo proxy, asks a question and writes what a visitor sees then. */
export async function takePicture(proxy, file) {
  const { chromium, executablePath } = browser;
  const opened = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // root has no sandbox
  try {
    const view = await opened.newPage({ viewport: SIZE, colorScheme: 'light' });
    await view.goto(proxy.url);
    await view.fill('#prompt', QUESTION);
    await view.press('#prompt', 'Enter');
    await view.waitForFunction(() => document.querySelector('#send').textContent === 'Send');
    await view.evaluate(() => document.querySelector('#playground').scrollIntoView({ behavior: 'instant' }));
    await view.screenshot({ path: file });
  } finally {
    await opened.close();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const proxy = await startProxy({ ...PICTURED, args: [...PICTURED.args, '--port', '8000'] });
  try {
    await takePicture(proxy, process.argv[2] ?? PICTURE);
  } finally {
    await proxy.stop();
  }
}
