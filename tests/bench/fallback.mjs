// What a request waits for the other account once the plan has refused it: `--fallback`, see docs/operating.md.

import { send, sleep, startProxy } from '../e2e/harness.mjs';
import { limitHeaders } from '../e2e/plan.test.mjs';
import { heading, median, row, verdict } from './figures.mjs';
import { pair, quiet, user } from './ways.mjs';

const MAX_MS = 1000;
const PLAN = { ANTHROPIC_API_KEY: 'sk-ant-test-key', CLAUDE_CODE_OAUTH_TOKEN: 'sk-ant-oat01-test' };
const RESET_S = 1;

/** From the API's refusal to the first byte of the answer, in ms, of new conversations and of later turns. */
export async function planEnds({ api, cli, rounds }) {
  const refused = [];
  api.script(({ headers }) => {
    if (headers['x-api-key']) return 'plain deltas=4';
    refused.push(performance.now());
    return { name: 'error', status: 429, headers: limitHeaders(RESET_S, { status: 'rejected' }) };
  });
  const proxy = await startProxy({ url: api.url, cli, env: PLAN, args: ['--auth-method', 'cli', '--fallback', 'api_key'] });
  const times = { new: [], later: [] };
  try {
    for (let round = 0; round < rounds; round++) {
      for (const [kind, history] of [['new', []], ['later', Array.from({ length: 20 }, (_, i) => pair(`${round}, ${i}`)).flat()]]) {
        await sleep(2 * RESET_S * 1000); // the limit has begun anew, and the plan is asked
        await quiet(proxy, 1);
        const count = refused.length;
        const exchange = send(proxy, { body: { stream: true, messages: [...history, user(`${kind} ${round}`)] } });
        const { headers } = await exchange.done;
        if (headers['x-claude-account'] !== 'api_key' || refused.length !== count + 1) throw new Error('the plan was not asked, or the other account did not answer');
        times[kind].push(exchange.chunks[0].at - refused.at(-1));
      }
    }
  } finally {
    await proxy.stop();
    api.script('plain deltas=4');
  }
  heading("the plan is used up: from its refusal to the other account's first byte");
  row('a new conversation', times.new);
  row('a later turn, 20 pairs of history', times.later);
  const slower = Math.max(median(times.new), median(times.later));
  verdict('the slower of both', slower, 'ms', slower <= MAX_MS, `at most ${MAX_MS}`);
}
