// Virtual clients that hold conversations with secret words, misbehave now and then, and judge every answer they get.

import http from 'node:http';
import { send, sleep } from '../e2e/harness.mjs';
import { RawClient, get, head, post } from '../e2e/raw_client.mjs';
import { parseMetrics } from '../e2e/operate.mjs';
import { Tally, Times, randomFrom } from './figures.mjs';
import { DIALECTS, asResult } from './talk.mjs';
import { longText, secretsIn } from './worlds.mjs';

const MOST_TURNS = 8;
const MOST_CONVERSATIONS = 2; // of one client, at a time
const FORGOTTEN = 8000; // ms after which a client gives a conversation up that the proxy keeps
const SLACK = 4000; // ms over the proxy's own limits

const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));
const shown = (text) => (text.length > 500 ? `${text.slice(0, 250)} … ${text.slice(-250)}` : text);

/** All that a stream says, its pieces put together. */
function deltasOf({ data = [] }) {
  const pieces = [];
  const collect = (value) => {
    for (const [key, one] of Object.entries(value ?? {})) {
      if (typeof one === 'object') collect(one);
      else if (['content', 'text', 'delta', 'partial_json', 'arguments'].includes(key)) pieces.push(one);
    }
  };
  data.filter((one) => one !== '[DONE]').forEach(collect);
  return pieces.join('');
}

/** The conversation without its last turns: each is a message of the user's and an answer. */
function takeBack(conversation, turns) {
  conversation.messages.splice(-2 * turns, 2 * turns);
  conversation.turns = Math.max(0, conversation.turns - turns);
}

/** The words that the model must be told with the next question, in their order. */
const wordsOf = ({ systemWords, messages }) => [
  ...systemWords,
  ...messages.map(({ secret }) => secret).filter((secret) => secret !== undefined),
];

/** What all clients share: who owns which word, and what was counted. */
export class Load {
  kinds = new Tally(); // requests by `dialect kind outcome`
  outcomes = new Tally(); // requests by outcome
  struck = new Tally(); // failures that no wish asked for, by status: a fault of ours must have caused each
  sent = new Tally(); // by route
  got = new Tally(); // by `route status`
  unsure = new Tally(); // by route: requests whose status the proxy may count otherwise than the client saw it
  tokens = [0, 0]; // of whole answers
  partial = 0; // answers that were asked for and not seen whole
  partialText = 0; // characters of these, at most
  firsts = new Times();
  totals = new Times();
  judged = 0; // requests as the model got them
  #secrets = 0;
  #owners = new Map();
  #processes = new Map();
  #expected = new Map(); // a question's word → what its request to the model must hold

  constructor({ proxy, world, verdicts, keys, seed, lag }) {
    Object.assign(this, { proxy, world, verdicts, keys, seed, lag, running: true });
    world.asked = (request) => this.judgeRequest(request);
    const keeping = (secret) => ({ text: `You keep ${secret}.`, words: [secret] });
    // Conversations of one key begin alike, so that a process can be taken back for another; some of all keys do.
    this.systems = keys.map((_, key) => [
      ...times(2, () => keeping(this.newSecret(key))),
      { text: 'You keep what you are told.', words: [] },
    ]);
    this.clients = times(world.clients, (i) => new Client(this, i));
    this.deadline = (world.timeout + world.queueTimeout) * 1000 + SLACK;
  }

  newSecret(key) {
    const secret = `secret-${1_000_000 + ++this.#secrets}`;
    this.#owners.set(secret, key);
    return secret;
  }

  /** `words`: all of the conversation and no others, in their order; `maybe`: of turns that the client has left. */
  expect(question, expected) {
    this.#expected.set(question, expected);
  }

  /** The request will be refused: the model never hears of it. */
  expectNone(question) {
    this.#expected.delete(question);
  }

  /** Judges a request as the model got it: `secrets` in their order, the last one that of the question. */
  judgeRequest({ secrets, process, turn }) {
    if (!secrets.length) return;
    this.judged++;
    const told = [...new Set(secrets)];
    const expected = this.#expected.get(secrets.at(-1));
    const fail = (what, detail) => this.verdicts.fail(what, `${process}: ${detail}; it was told ${told}`);
    if (!expected) return fail('a request that nobody made', secrets.at(-1));
    const { words, maybe } = expected;
    const foreign = told.filter((one) => !words.includes(one) && !maybe.includes(one));
    const missing = words.filter((one) => !told.includes(one));
    if (foreign.length) fail('a foreign word in a request', foreign);
    else if (missing.length) fail('a word is missing in a request', missing);
    else if (!maybe.length && String(told) !== String(words)) fail('words in another order', words);
    this.metProcess({ pid: process, turn: turn ?? this.judged }, this.#owners.get(secrets.at(-1)));
  }

  /** A process serves one key; `turn` counts its turns, so that a number that the system gives out again is told apart. */
  metProcess({ pid, turn }, key) {
    const known = this.#processes.get(pid);
    if (known && turn > known.turn && known.key !== key)
      this.verdicts.fail('a process served two keys', `${pid}, turn ${turn}`);
    this.#processes.set(pid, { turn, key });
  }

  run() {
    return Promise.all(this.clients.map((client) => client.run()));
  }

  stop() {
    this.running = false;
  }
}

class Client {
  constructor(load, index) {
    Object.assign(this, { load, index, random: randomFrom(load.seed + 7919 * index) });
    this.key = index % load.keys.length;
    this.agent = new http.Agent({ keepAlive: true, maxFreeSockets: 1 });
    this.conversations = [];
    this.sessions = 0;
  }

  get world() {
    return this.load.world;
  }

  get auth() {
    return { authorization: `Bearer ${this.load.keys[this.key]}` };
  }

  async run() {
    const activities = {
      chat: 40,
      oneOffs: 15,
      edit: 12,
      regenerate: 8,
      fork: 6,
      tool: 10,
      choices: 5,
      long: 6,
      slow: 3,
      abort: 10,
      pipelined: 4,
      error: 6,
      break: 5,
      hang: 6,
      garbage: 5,
      mistake: 4,
      wrongKey: 2,
      figures: 3,
      lists: 2,
      big: 2,
      tooBig: 1,
      burst: 0.5,
    };
    while (this.load.running) {
      const name = this.random.weighed(activities);
      try {
        await this[name]();
      } catch (error) {
        this.load.verdicts.fail('the soak itself failed', `${name}: ${error.stack}`);
      }
      await sleep(this.random() * this.world.pause);
    }
    this.agent.destroy();
  }

  // ---- conversations -----------------------------------------------------------------------------

  /** How a conversation begins: on its own, or as others of the same key do. */
  system() {
    if (this.random() < 0.65) return this.random.of(this.load.systems[this.key]);
    const secret = this.load.newSecret(this.key);
    return { text: `You keep ${secret}.`, words: [secret] };
  }

  begin(dialect = this.random.of(Object.keys(DIALECTS))) {
    const { text, words } = DIALECTS[dialect].single ? { words: [] } : this.system();
    const keeps = dialect !== 'completions' && this.random() < 0.35;
    return {
      dialect,
      system: text,
      systemWords: words, // that the model must have been told, as those of the messages
      messages: [],
      maybe: new Set(), // of turns of a session that the client has left: who knows how far they came
      // Two clients with different keys use the same names.
      session: keeps && !DIALECTS[dialect].chains ? `session ${this.index >> 1} ${this.sessions++}` : undefined,
      chained: keeps && DIALECTS[dialect].chains,
      turns: 0,
      usedAt: performance.now(),
    };
  }

  /** One that goes on, or a new one. */
  pick() {
    const isKept = ({ session, chained }) => session || chained;
    this.conversations = this.conversations.filter(
      (one) => one.turns < MOST_TURNS && !(isKept(one) && performance.now() - one.usedAt > FORGOTTEN),
    );
    if (this.conversations.length < MOST_CONVERSATIONS && this.random() < 0.4) {
      const fresh = this.begin();
      if (!DIALECTS[fresh.dialect].single) this.conversations.push(fresh);
      return fresh;
    }
    return this.conversations.length ? this.random.of(this.conversations) : this.begin();
  }

  drop(conversation) {
    this.conversations = this.conversations.filter((one) => one !== conversation);
  }

  /** The request that asks this message; `n` choices of an answer. */
  prepare(conversation, message, { stream = this.random() < 0.5, n = 1 } = {}) {
    const speech = DIALECTS[conversation.dialect];
    const { session, chained, messages } = conversation;
    const previous = chained ? messages.at(-1)?.id : undefined;
    const fresh = session || previous ? [message] : [...messages, message];
    const [words, maybe] = [[...wordsOf(conversation), message.secret], [...conversation.maybe]];
    this.load.expect(message.secret, { words, maybe });
    const body = speech.body({
      model: this.world.model,
      system: conversation.system,
      messages: fresh,
      stream,
      n,
      tool: conversation.tooled ? this.world.tool : undefined,
      session,
      previous,
    });
    const allowed = new Set([...words, ...maybe]);
    return { speech, stream, n, path: speech.path, headers: { ...this.auth, ...speech.headers }, body, allowed };
  }

  /** A new message that makes the model do something, and the word in it. */
  question(wish, options, filler = '') {
    const secret = this.load.newSecret(this.key);
    return { role: 'user', secret, text: `${this.world.wish(wish, options)} ${secret} ${filler}`.trim() };
  }

  /**
   * Asks and judges. `expected`: the statuses of an error that the wish asks for; `abortAfter` ms. Resolves to {outcome, texts, calls,
   * id}, the outcome `right`, `left`, or a status.
   */
  async ask(conversation, kind, request, { expected = [], abortAfter, check } = {}) {
    const { load } = this;
    const began = performance.now();
    const exchange = send(load.proxy, {
      ...request,
      over: this.random() < 0.7 ? { agent: this.agent } : undefined,
    });
    load.sent.add(request.path);
    let left = false;
    if (abortAfter !== undefined) {
      const ended = await Promise.race([exchange.done, sleep(abortAfter).then(() => undefined)]);
      if (!ended) {
        left = true;
        exchange.abort();
      }
    }
    const result = await this.inTime(exchange, kind, request);
    conversation.usedAt = performance.now();
    return this.judge(conversation, kind, request, result, { expected, left, check, began });
  }

  /** The result, or what has come of it when the time is up. */
  async inTime(exchange, kind, { path, body }) {
    const starved = this.load.lag.total;
    const wait = async () => {
      await sleep(this.load.deadline);
      const more = this.load.lag.total - starved; // the machine had no time for us
      await sleep(more);
    };
    const result = await Promise.race([exchange.done, wait()]);
    if (result) return result;
    this.load.verdicts.fail('a request did not end in time', `${kind} ${path} ${shown(JSON.stringify(body ?? ''))}`);
    exchange.abort();
    return exchange.done;
  }

  judge(conversation, kind, request, result, { expected = [], left, check, began }) {
    const { load } = this;
    const { speech, path } = request;
    const label = `${conversation.dialect} ${request.stream ? 'streamed' : 'whole'}`;
    const fail = (what, detail = '') =>
      load.verdicts.fail(
        what,
        `${label} ${kind} ${detail} — got ${result.status} ${result.error?.message ?? ''} ${shown(result.text)} — asked ${shown(JSON.stringify(request.body))}`,
      );
    const end = (outcome, more = {}) => {
      load.kinds.add(`${label.padEnd(22)} ${kind.padEnd(10)} ${outcome}`);
      load.outcomes.add(outcome);
      return { outcome, texts: [], calls: [], ...more };
    };
    for (const secret of secretsIn(`${result.text} ${deltasOf(result)} ${JSON.stringify(result.headers)}`))
      if (!request.allowed.has(secret)) fail('a word of another conversation', secret);
    const isPartial = () => {
      load.partial += request.n;
      load.partialText += request.longest ?? 0;
    };
    if (left) {
      load.unsure.add(path);
      isPartial();
      return end('left');
    }
    if (result.error) {
      load.unsure.add(path);
      isPartial();
      fail('a connection broke');
      return end('broken');
    }
    load.got.add(`${path} ${result.status}`);
    let error;
    try {
      if (result.status !== 200) error = speech.error(result.json ?? {});
      else if (result.data) error = speech.inBand(result);
    } catch (problem) {
      fail('an error that is not of the dialect', problem.message);
      return end('malformed');
    }
    if (error !== undefined) {
      isPartial();
      if (result.status === 200) load.unsure.add(path);
      return end(this.judgeError(fail, result, error, expected, began));
    }
    let answer;
    try {
      answer = speech.read(result);
    } catch (problem) {
      isPartial();
      fail('an answer that is not of the dialect', problem.message);
      return end('malformed');
    }
    answer.usage.forEach((count, i) => (load.tokens[i] += count));
    const first = result.frames?.find(({ data }) => data !== undefined);
    if (first && result.sentAt) load.firsts.add(`${label} ${kind}`, first.at - result.sentAt);
    if (result.sentAt) load.totals.add(`${label} ${kind}`, result.at - result.sentAt);
    const wrong =
      answer.texts.length !== request.n ? `${answer.texts.length} choices of ${request.n}` : check?.(answer);
    if (wrong) fail('a wrong answer', wrong);
    return end(wrong ? 'wrong' : 'right', answer);
  }

  /** The outcome of an error: asked for, explained by what we did to the proxy, or a fault. */
  judgeError(fail, result, error, expected, began) {
    const told = result.status === 200 ? `in-band ${error}` : `${result.status} ${error}`;
    if (/internal_error|^500 internal/.test(told)) fail('an internal error', told);
    if (expected.includes(result.status) || (result.status === 200 && expected.length)) return `asked-for ${told}`;
    // Messages tell kinds, not statuses, in-band.
    const text = result.status === 200 ? result.text.slice(-2000) : result.text;
    if (result.status === 429 && this.world.queue && /busy|waited|queue/i.test(text)) {
      this.load.struck.add('busy');
      return told;
    }
    if (this.world.stormed?.(began - 1000, result.at)) {
      this.load.struck.add('storm');
      return told;
    }
    if (result.status === 504 || /within|timed?.?out/i.test(text)) this.load.struck.add('timeout');
    else if (result.status === 502 || result.status === 200) this.load.struck.add('crash');
    else fail('an error that nothing explains', told);
    return told;
  }

  /** Whether the texts tell the words of this conversation and no others. */
  knows(conversation, secret, stranger) {
    const required = new Set([...wordsOf(conversation), secret]);
    const { maybe, messages, session, chained, tooled } = conversation;
    const length = messages.length + 1;
    return ({ texts }) => {
      for (const text of texts) {
        if (this.world.says) {
          if (!stranger && !text.includes(secret)) return `the answer does not say ${secret}`;
          continue;
        }
        let told;
        try {
          told = JSON.parse(text);
        } catch {
          return `no JSON: ${shown(text)}`;
        }
        const has = new Set(told.secrets);
        const missing = [...required].filter((one) => !has.has(one));
        const surplus = [...has].filter((one) => !required.has(one) && !maybe.has(one));
        if (missing.length || surplus.length) return `the model was not told ${missing}, and was told ${surplus}`;
        if (this.world.counts && !tooled && !maybe.size && told.messages !== length)
          return `${told.messages} messages for ${length}${session ? ', session' : chained ? ', chained' : ''}`;
        if (told.pid) this.load.metProcess(told, this.key);
      }
      return undefined;
    };
  }

  /** The turn has become part of the conversation. */
  learn(conversation, message, { id, texts: [text], calls }) {
    conversation.turns++;
    conversation.messages.push(message, { role: 'assistant', id, text, ...(calls.length ? { calls } : {}) });
  }

  /** `options.message`: one that was asked before. */
  async turn(conversation, kind, options = {}, asking = {}) {
    const message = options.message ?? this.question('who', undefined, options.filler);
    const request = this.prepare(conversation, message, options);
    const check = this.knows(conversation, message.secret);
    const answer = await this.ask(conversation, kind, request, { check, ...asking });
    if (answer.outcome === 'right') this.learn(conversation, message, answer);
    if (answer.outcome === 'left' && conversation.session) conversation.maybe.add(message.secret);
    return { ...answer, message };
  }

  // ---- what a client does ------------------------------------------------------------------------

  /** Some turns, soon one after the other: their process is still there, as a rule. */
  async chat() {
    const conversation = this.pick();
    for (let turns = this.random.between(1, 4); turns > 0 && this.load.running; turns--) {
      const kind =
        conversation.turns === 0 ? 'first' : conversation.session || conversation.chained ? 'session' : 'later';
      const { outcome } = await this.turn(conversation, kind);
      if (/429/.test(outcome)) await sleep(this.random() * 500);
      if (outcome !== 'right' || DIALECTS[conversation.dialect].single) return;
    }
  }

  /** Questions of one system prompt, each on its own. */
  async oneOffs() {
    const { text, words } = this.random.of(this.load.systems[this.key]);
    const dialect = this.random.of(Object.keys(DIALECTS));
    for (let count = this.random.between(2, 6); count > 0 && this.load.running; count--) {
      const alone = { ...this.begin(dialect), session: undefined, chained: false };
      if (!DIALECTS[dialect].single) Object.assign(alone, { system: text, systemWords: words });
      await this.turn(alone, 'one-off');
    }
  }

  /** One whose last turns the client can take back: the proxy does not keep it, or keeps each answer of it. */
  changeable() {
    return this.conversations.find(
      ({ turns, session, usedAt }) => turns > 0 && !session && performance.now() - usedAt < FORGOTTEN,
    );
  }

  /** Another question in the place of an earlier one. */
  async edit() {
    const conversation = this.changeable();
    if (!conversation) return this.chat();
    takeBack(conversation, this.random.between(1, Math.min(3, conversation.turns)));
    if (conversation.messages.at(-1)?.calls) takeBack(conversation, 1); // their results are gone
    return this.turn(conversation, 'edit');
  }

  /** The last question once more. */
  async regenerate() {
    const conversation = this.changeable();
    const message = conversation?.messages.at(-2);
    if (!message?.text) return this.chat();
    takeBack(conversation, 1);
    return this.turn(conversation, 'again', { message });
  }

  /** Two ends of one history: neither may hear of the other. */
  async fork() {
    const parent = this.conversations.find((one) => one.turns > 0 && !one.session && !one.tooled);
    if (!parent) return this.chat();
    const twin = { ...parent, messages: [...parent.messages], maybe: new Set() };
    await Promise.all([this.turn(parent, 'fork'), this.turn(twin, 'fork')]);
    this.conversations.push(twin);
    if (this.conversations.length > MOST_CONVERSATIONS) this.conversations.shift();
    return undefined;
  }

  async tool() {
    const dialects = Object.keys(DIALECTS).filter((name) => !DIALECTS[name].single);
    const conversation = this.begin(this.random.of(dialects));
    conversation.tooled = true;
    const message = this.question('tool');
    const calls = ({ calls: told }) =>
      told.length === 1 && told[0].name === this.world.tool ? undefined : `the calls ${JSON.stringify(told)}`;
    const called = await this.ask(conversation, 'call', this.prepare(conversation, message), { check: calls });
    if (called.outcome !== 'right') return;
    this.learn(conversation, message, called);
    if (!conversation.session && this.random() < 0.3) {
      // The call is never answered.
      takeBack(conversation, 1);
      await this.turn(conversation, 'instead');
      return;
    }
    const found = this.load.newSecret(this.key);
    const texts = called.calls.map(({ id }) => ({ id, text: `found ${found}` }));
    const results = { role: 'user', secret: found, results: texts };
    // The stand-in answers with the results alone, and only a process that was told the history says all words.
    const check = ({ texts: [text] }) => (this.world.says || text.includes(found) ? undefined : `nothing of ${found}`);
    for (let attempt = 0; attempt < 3; attempt++) {
      const answer = await this.ask(conversation, 'result', this.prepare(conversation, results), { check });
      if (answer.outcome === 'right') {
        if (this.world.counts)
          this.load.outcomes.add(
            /"secrets"/.test(answer.texts[0])
              ? 'results: told to another process'
              : 'results: taken by the process that waits',
          );
        this.learn(conversation, results, answer);
        this.conversations.push(conversation);
        return;
      }
      await sleep(this.random() * 500);
      if (performance.now() - conversation.usedAt > FORGOTTEN) return;
    }
  }

  async choices() {
    const dialect = this.random.of(['chat', 'completions']);
    const conversation = this.begin(dialect);
    conversation.session = undefined;
    await this.turn(conversation, 'choices', { n: this.random.between(2, 3) });
  }

  longRequest(conversation, slow) {
    const n = Math.min(this.world.longest ?? 400, slow ? 400 : this.random.between(20, 300));
    const size = slow ? 1200 : this.random.between(2, 200);
    const delay_ms = slow ? 0 : this.random.between(0, 3);
    const message = this.question('long', { n, size, delay_ms });
    const check = ({ texts: [text] }) =>
      this.world.says || text.trim() === longText(n, size) ? undefined : `${text.length} other characters`;
    const request = this.prepare(conversation, message, { stream: slow || this.random() < 0.7 });
    return { request: { ...request, longest: n * Math.max(size, 5) }, check };
  }

  async long() {
    const conversation = this.begin();
    const { request, check } = this.longRequest(conversation, false);
    await this.ask(conversation, 'long', request, { check });
  }

  /** Reads in sips for a while, and then the rest. */
  async slow() {
    const conversation = this.begin();
    const { request, check } = this.longRequest(conversation, true);
    const began = performance.now();
    const client = new RawClient(this.load.proxy);
    const fields = Object.entries({ ...request.headers, connection: 'close' }).map(
      ([key, value]) => `${key}: ${value}`,
    );
    await client.write(post(request.path, JSON.stringify(request.body), ...fields));
    this.load.sent.add(request.path);
    for (let sip = 0; sip < 15 && !client.closed; sip++) {
      client.socket.pause();
      await sleep(this.random() * 150);
      client.socket.resume();
      await sleep(5);
    }
    await client.ends(this.load.deadline);
    if (!client.closed) this.load.verdicts.fail('a request did not end in time', `slow ${request.path}`);
    const [response] = client.responses;
    client.close();
    const stamps = { at: performance.now() };
    const result = response?.whole
      ? asResult(response, stamps)
      : { text: client.got.slice(-500), headers: {}, error: new Error('cut off'), ...stamps };
    this.judge(conversation, 'slow', request, result, { check, began });
  }

  async abort() {
    const conversation = this.pick();
    const patience = this.random() ** 2 * (this.world.name === 'claude' ? 1500 : 300);
    const { outcome, message } = await this.turn(conversation, 'abort', {}, { abortAfter: patience });
    // What it had begun is taken back for the same question.
    if (outcome === 'left' && !conversation.session && this.random() < 0.5)
      await this.turn(conversation, 'once more', { message });
  }

  /** Several requests at once on one connection: answers in their order. */
  async pipelined() {
    const count = this.random.between(2, 3);
    const asked = times(count, () => {
      const conversation = this.begin('chat');
      conversation.session = undefined;
      const message = this.question('who');
      const request = this.prepare(conversation, message, { stream: false });
      return { conversation, request, check: this.knows(conversation, message.secret) };
    });
    const began = performance.now();
    const client = new RawClient(this.load.proxy);
    await client.write(
      asked
        .map(({ request }, i) =>
          post(
            request.path,
            JSON.stringify(request.body),
            `Authorization: ${this.auth.authorization}`,
            ...(i === count - 1 ? ['Connection: close'] : []),
          ),
        )
        .join(''),
    );
    asked.forEach(({ request }) => this.load.sent.add(request.path));
    await client.ends(this.load.deadline * count);
    const { responses, got } = client;
    client.close();
    if (!client.closed) this.load.verdicts.fail('a request did not end in time', `pipelined ${shown(got)}`);
    asked.forEach(({ conversation, request, check }, i) => {
      const stamps = { at: performance.now() };
      const result = responses[i]?.whole
        ? asResult(responses[i], stamps)
        : { text: got.slice(-500), headers: {}, error: new Error(`answer ${i} of ${count} is missing`), ...stamps };
      this.judge(conversation, 'pipelined', request, result, { check, began });
    });
  }

  async failing(kind, wish, options, asking) {
    const conversation = this.begin();
    const request = this.prepare(conversation, this.question(wish, options));
    return this.ask(conversation, kind, request, asking);
  }

  async error() {
    const status = this.random.of([400, 429, 500, 529]);
    const expected = status === 529 ? [503, 529] : [status];
    const { outcome } = await this.failing('API error', 'error', { status }, { expected });
    if (outcome === 'right') this.load.verdicts.fail('an error was told as an answer', String(status));
  }

  async break() {
    await this.failing('broken', this.random.of(this.world.breaks), undefined, { expected: [500, 502, 503, 529] });
  }

  async hang() {
    const waits = this.random() < 0.15;
    await this.failing('hanging', 'hang', undefined, {
      expected: [504],
      abortAfter: waits ? undefined : this.random.between(200, 1500),
    });
  }

  async big() {
    const conversation = this.begin();
    await this.turn(conversation, 'big', { filler: 'y'.repeat(this.random.between(1, this.world.bigBody)) });
  }

  async tooBig() {
    const conversation = this.begin();
    const message = this.question('who', undefined, 'y'.repeat(this.load.bodyLimit + 1));
    const request = this.prepare(conversation, message);
    this.load.expectNone(message.secret);
    const { outcome } = await this.ask(conversation, 'too big', request, { expected: [413] });
    if (!/^asked-for 413/.test(outcome)) this.load.verdicts.fail('a body over the limit was taken', outcome);
  }

  /** More at once than may wait. */
  async burst() {
    const count = this.world.processes + this.world.queue + 6;
    await Promise.all(times(count, () => this.turn(this.begin(), 'burst')));
  }

  // ---- what no client should do ------------------------------------------------------------------

  async garbage() {
    const noise = () => Buffer.from(times(this.random.between(1, 3000), () => this.random.between(0, 255)));
    const body = '{"messages":[{"role":"user","content":"hi"}]}';
    const line = 'POST /v1/chat/completions HTTP/1.1';
    const bytes = this.random.of([
      noise,
      () => 'GET\r\n\r\n',
      () => head(line, 'Content-Length: 5', 'Content-Length: 6') + body,
      () => head(line, 'Transfer-Encoding: chunked', 'Content-Length: 5') + body,
      () => `${head(line, 'Transfer-Encoding: chunked')}zz\r\n${body}\r\n`,
      () => head(line, `X: ${'x'.repeat(70_000)}`),
      () => head(line, 'Content-Length: 100000') + body, // and no more
      () => `${line}\r\nHost: 127`,
      () => get('/../../etc/passwd'),
      () => get('/health', 'X: a', ' folded'),
      () => '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    ])();
    const client = new RawClient(this.load.proxy);
    if (bytes.includes(line)) {
      // It may be counted as a request, or as none.
      this.load.sent.add('/v1/chat/completions');
      this.load.unsure.add('/v1/chat/completions');
    }
    await client.write(bytes);
    await Promise.race([client.ends(1500), sleep(300 + this.random() * 1200)]);
    const { responses } = client;
    client.close();
    for (const { status } of responses)
      if (status < 400 || status === 500)
        this.load.verdicts.fail('garbage was answered', `${status} to ${shown(bytes.toString('latin1'))}`);
    this.load.outcomes.add('garbage');
  }

  /** JSON that is none, or that asks for what cannot be. */
  async mistake() {
    const dialect = this.random.of(Object.keys(DIALECTS));
    const conversation = this.begin(dialect);
    const speech = DIALECTS[dialect];
    const body = this.random.of([
      '{"messages":[',
      '[]',
      '{"messages":17,"input":17,"prompt":{}}',
      '"x"',
      `{"a":${'['.repeat(5000)}`,
    ]);
    const request = {
      speech,
      stream: false,
      n: 1,
      path: speech.path,
      headers: { ...this.auth, ...speech.headers },
      body,
      allowed: new Set(),
    };
    const { outcome } = await this.ask(conversation, 'mistake', request, { expected: [400] });
    if (!/^asked-for 400/.test(outcome))
      this.load.verdicts.fail('a mistake was not told', `${body.slice(0, 50)}: ${outcome}`);
  }

  async wrongKey() {
    const conversation = this.begin();
    const message = this.question('who');
    const request = this.prepare(conversation, message);
    this.load.expectNone(message.secret);
    request.headers = { ...request.headers, authorization: 'Bearer wrong' };
    const { outcome } = await this.ask(conversation, 'wrong key', request, { expected: [401] });
    if (!/^asked-for 401/.test(outcome)) this.load.verdicts.fail('a wrong key was taken', outcome);
  }

  async figures() {
    const result = await this.inTime(
      send(this.load.proxy, { method: 'GET', path: '/metrics', headers: this.auth }),
      'figures',
      { path: '/metrics' },
    );
    try {
      parseMetrics(result.text);
    } catch (error) {
      this.load.verdicts.fail('figures that Prometheus would refuse', `${result.status} ${error.message}`);
    }
    this.load.outcomes.add('figures');
  }

  async lists() {
    const path = this.random.of([
      '/v1/models',
      '/v1/sessions',
      '/v1/sessions/stats',
      '/v1/auth/status',
      '/version',
      '/v1/nothing',
    ]);
    const result = await this.inTime(send(this.load.proxy, { method: 'GET', path, headers: this.auth }), 'lists', {
      path,
    });
    const right = path === '/v1/nothing' ? 404 : 200;
    if (result.status !== right || !result.json)
      this.load.verdicts.fail('a list that is none', `${path}: ${result.status} ${shown(result.text)}`);
    for (const secret of secretsIn(result.text)) this.load.verdicts.fail('a word in a list', `${path} ${secret}`);
    this.load.outcomes.add('lists');
  }
}
