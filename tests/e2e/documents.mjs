// README.md and docs/*.md as the tests read them: pages, code blocks, commands, headings, links.

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

const read = (name) => ({ name, text: readFileSync(path.join(ROOT, name), 'utf8') });
const docs = readdirSync(path.join(ROOT, 'docs')).filter((name) => name.endsWith('.md'));
export const PAGES = ['README.md', ...docs.map((name) => `docs/${name}`)].map(read);

/** The pages as one text: what has to be written somewhere, wherever. */
export const ALL_TEXT = PAGES.map(({ text }) => text).join('\n');

const FENCE = /^```(\S*)\n([^]*?)^```$/gm;

/** The code blocks of a page: {language, text}. */
export const blocksOf = ({ text }) => [...text.matchAll(FENCE)].map(([, language, code]) => ({ language, text: code }));

/** A page without its code blocks. */
export const proseOf = ({ text }) => text.replace(FENCE, '');

/** The commands of a shell block, a continued line as one, without comments. */
const commandsIn = (code) =>
  code
    .replace(/\\\n\s*/g, '')
    .split('\n')
    .map((line) => line.replace(/(^| +)# .*/, '').trim())
    .filter(Boolean);

const PROGRAMS =
  'brew|cargo|claude|claude-openai|curl|docker|git|launchctl|loginctl|make|npm|npx|pip|sudo|systemctl';
const INLINE = new RegExp(`\`((?:${PROGRAMS}) [^\`]+)\``, 'g');

/** All commands of a page: lines of its shell blocks, and code in its sentences that begins with a program's name. */
export const commandsOf = (page) => [
  ...blocksOf(page)
    .filter(({ language }) => language === 'sh')
    .flatMap(({ text }) => commandsIn(text)),
  ...[...proseOf(page).matchAll(INLINE)].map(([, command]) => command),
];

/** What docs/clients.md says of a client, below its heading. */
export function recipeOf(heading) {
  const { text } = PAGES.find(({ name }) => name === 'docs/clients.md');
  const at = text.indexOf(`\n## ${heading}\n`);
  if (at < 0) throw new Error(`docs/clients.md has no ${heading}`);
  return text.slice(at).split(/\n## /)[1];
}

/** The anchors that a Markdown page's headings get on GitHub. */
export function anchorsOf(page) {
  const seen = new Map();
  return [...proseOf(page).matchAll(/^#+ (.+)$/gm)].map(([, title]) => {
    const slug = title
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(' ', '-');
    const times = seen.get(slug) ?? 0;
    seen.set(slug, times + 1);
    return times ? `${slug}-${times}` : slug;
  });
}

/** Where the links and pictures of a page lead. */
export const linksOf = (page) => [...proseOf(page).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target);
