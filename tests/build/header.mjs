// Reads claude-openai.hpp: its sections, its tokens, and the size and nesting of its functions.

const RULE = /^\/\/={90,}$/;
const TITLE = /^\/\/ \[(\d\d)\] ([a-z_]+) - \S.*$/;
const USES = /^uses: (nothing|[a-z_]+(?:, [a-z_]+)*) \| (\S.*)$/;

// The header cut at its banners:
//   { prologue, sections: [{ number, name, uses, property, line, text }], epilogue, problems }
export function sections_of(text) {
  const lines = text.split('\n');
  const problems = [];
  const sections = [];
  for (let i = 0; i < lines.length; i++) {
    if (!RULE.test(lines[i]) || !/^\/\/ \[/.test(lines[i + 1] ?? '')) continue;
    const title = TITLE.exec(lines[i + 1]);
    let end = i + 2;  // a long list of uses goes on over the next lines
    while (/^\/\/ /.test(lines[end] ?? '')) end++;
    const uses = USES.exec(lines.slice(i + 2, end).map((line) => line.slice(3).trim()).join(' '));
    if (!title) problems.push(`line ${i + 2}: not "// [07] name - what it does": ${lines[i + 1]}`);
    else if (!uses) problems.push(`line ${i + 3}: not "// uses: a, b | property": ${lines[i + 2]}`);
    else if (!RULE.test(lines[end] ?? '')) problems.push(`line ${end + 1}: the banner has no end`);
    else {
      sections.push({
        number: title[1],
        name: title[2],
        uses: uses[1] === 'nothing' ? [] : uses[1].split(', '),
        property: uses[2],
        line: i + 1,
      });
    }
  }
  const end = lines.findIndex((line) => /^}\s*\/\/ namespace claude_openai$/.test(line));
  if (end < 0) problems.push('no "}  // namespace claude_openai" at its end');
  const stop = end < 0 ? lines.length : end;
  const cut = (from, to) => lines.slice(from, to).join('\n') + '\n';
  sections.forEach((section, i) => {
    section.text = cut(section.line - 1, i + 1 < sections.length ? sections[i + 1].line - 1 : stop);
  });
  if (sections.length === 0) problems.push('no section banner');
  const first = sections.length ? sections[0].line - 1 : stop;
  return { prologue: cut(0, first), sections, epilogue: cut(stop), problems };
}

// ---- tokens -------------------------------------------------------------------------------------

const TOKEN = new RegExp(
  [
    String.raw`(?<skip>\s+|\/\/[^\n]*|\/\*[^]*?\*\/)`,
    // A preprocessor line, with the lines it goes on over.
    String.raw`(?<directive>(?<=^|\n)[ \t]*#(?:[^\n\\]|\\[^])*)`,
    String.raw`(?<raw>(?:u8|u|U|L)?R"(?<mark>[^()\\\s]{0,16})\([^]*?\)\k<mark>")`,
    String.raw`(?<string>(?:u8|u|U|L)?"(?:[^"\\\n]|\\[^])*"|(?:u8|u|U|L)?'(?:[^'\\\n]|\\[^])+')`,
    String.raw`(?<number>\.?\d(?:'?[\w.]|[eEpP][+-])*)`,
    String.raw`(?<word>[A-Za-z_]\w*)`,
    String.raw`(?<sign>::|->\*?|\+\+|--|&&|\|\||<=|>=|==|!=|[^])`,
  ].join('|'),
  'gy',
);

// The tokens as { text, kind, line }, where kind is word, number, string or sign. Preprocessor lines
// are left out.
export function tokens_of(text) {
  const tokens = [];
  let line = 1;
  for (const match of text.matchAll(TOKEN)) {
    const groups = match.groups;
    const kind =
      groups.word ? 'word'
      : groups.number ? 'number'
      : groups.raw || groups.string ? 'string'
      : groups.sign ? 'sign'
      : null;
    if (kind) tokens.push({ text: match[0], kind, line });
    for (const c of match[0]) if (c === '\n') line++;
  }
  return tokens;
}

// ---- functions ----------------------------------------------------------------------------------

const CONTROL = ['if', 'for', 'while', 'switch', 'catch'];
const CLOSING = { '(': ')', '{': '}', '[': ']' };
// What may stand between a parameter list and the body.
const BEFORE_BODY = [')', 'const', 'noexcept', 'override', 'final', '&', '&&'];

// Every function with a body: { name, line, lines, nesting }. `lines` counts from the first token of
// its signature to its closing brace; `nesting` counts if, for, while, do, switch, try and catch
// inside each other, with braces or without (an `else if` is no deeper than its `if`). A lambda
// belongs to the function it is written in.
export function functions_of(text) {
  const tokens = tokens_of(text);
  const functions = [];
  let at = 0;
  let deepest = 0;

  const is = (value, offset = 0) => tokens[at + offset]?.text === value;
  const fail = (what) => {
    throw new Error(`line ${tokens[Math.min(at, tokens.length - 1)]?.line}: ${what}`);
  };
  const expect = (value) => {
    if (!is(value)) fail(`expected '${value}', found '${tokens[at]?.text}'`);
    at++;
  };

  // What namespaces and classes hold, up to and with the closing token.
  function declarations(closing) {
    while (at < tokens.length && !is(closing)) declaration();
    if (closing) expect(closing);
  }

  function declaration() {
    while (['public', 'private', 'protected'].includes(tokens[at].text) && is(':', 1)) at += 2;
    if (is('}')) return;
    const start = at;
    let kind = 'other';        // or namespace, class, enum, object
    let name;                  // of a function: there was a parameter list
    let initializers = false;  // the ':' of a constructor's member initializers was there
    let arrow = false;         // the '->' of a trailing return type was there
    for (; at < tokens.length && !is('}'); ) {
      const { text: token, kind: token_kind } = tokens[at];
      if (token === ';') return void at++;
      if (token === '=') {
        expression(0, (next) => next === ';');
      } else if (token === 'template' && is('<', 1)) {
        at++;
        template_list();
      } else if (token === 'operator') {
        name = operator_name();
      } else if (token === '{') {
        if (kind === 'namespace') return at++, declarations('}');
        const before = tokens[at - 1];
        if (kind === 'class') {
          at++;
          declarations('}');
          kind = 'object';  // as in `struct { … } name;`
        } else if (name && (arrow || BEFORE_BODY.includes(before.text) || (initializers && before.text === '}'))) {
          return body(start, name);
        } else {
          group(0);
        }
      } else if (token in CLOSING) {
        if (token === '(' && kind === 'other' && !initializers && tokens[at - 1]?.kind === 'word') {
          if (!['noexcept', 'operator', 'decltype'].includes(tokens[at - 1].text)) name = tokens[at - 1].text;
        }
        group(0);
      } else {
        if (token === ':' && name) initializers = true;
        if (token === '->' && name) arrow = true;
        if (token === 'namespace' || (token === 'extern' && tokens[at + 1]?.kind === 'string')) kind = 'namespace';
        if (token === 'enum') kind = 'enum';
        if (['class', 'struct', 'union'].includes(token) && kind === 'other' && !name) kind = 'class';
        if (token_kind === 'sign' && /^[)\]]$/.test(token)) fail(`'${token}' that closes nothing`);
        at++;
      }
    }
  }

  function operator_name() {
    const start = at++;
    if (is('(') && is(')', 1)) at += 2;
    else while (!is('(')) at++;
    return tokens.slice(start, at).map((token) => token.text).join('');
  }

  function template_list() {
    let depth = 0;
    do {
      if (tokens[at].text in CLOSING) {
        group(0);
      } else {
        depth += is('<') ? 1 : is('>') ? -1 : 0;
        at++;
      }
    } while (depth > 0 && at < tokens.length);
  }

  function body(start, name) {
    deepest = 0;
    block(0);
    const { line } = tokens[start];
    functions.push({ name, line, lines: tokens[at - 1].line - line + 1, nesting: deepest });
  }

  function block(depth) {
    expect('{');
    while (!is('}')) at < tokens.length ? statement(depth) : fail('a block without an end');
    at++;
  }

  function ruled(depth) {  // what a control statement rules
    deepest = Math.max(deepest, depth);
    if (is('{')) block(depth);
    else statement(depth);
  }

  function statement(depth) {
    const token = tokens[at].text;
    if (token === '{') return block(depth);
    if (token === 'do' || token === 'try') return at++, ruled(depth + 1);
    if (CONTROL.includes(token)) return control(token, depth);
    if (token === 'case' || (token === 'default' && is(':', 1))) {
      while (!is(':')) at++;
      return void at++;
    }
    if (is_local_class()) return declaration();
    expression(depth, (next) => next === ';');
    expect(';');
  }

  function control(token, depth) {
    at++;
    if (is('constexpr')) at++;
    group(depth);
    if (token === 'while' && is(';')) return void at++;  // the end of a `do`
    ruled(depth + 1);
    if (token !== 'if' || !is('else')) return;
    at++;
    if (is('if')) statement(depth);
    else ruled(depth + 1);
  }

  // `struct name {` or `struct name : base {`, but not `struct name variable{};`.
  function is_local_class() {
    if (!['struct', 'class', 'union'].includes(tokens[at].text)) return false;
    return is('{', 1) || is('{', 2) || is(':', 2);
  }

  // Goes to the token that ends it. A '{' after a lambda's introducer is a block, any other a list.
  function expression(depth, ends) {
    let lambda = false;
    while (at < tokens.length && !ends(tokens[at].text)) {
      const token = tokens[at].text;
      if (token === '{' && lambda) {
        block(depth);
        lambda = false;
      } else if (token in CLOSING) {
        lambda = lambda || (token === '[' && is_introducer());
        group(depth);
      } else if (/^[)}\]]$/.test(token)) {
        fail(`'${token}' that closes nothing`);
      } else {
        at++;
      }
    }
  }

  // A '[' that opens a lambda, not a subscript, an attribute or a structured binding.
  function is_introducer() {
    const before = tokens[at - 1];
    if (is('[', 1) || is('[', -1)) return false;
    if (before.kind === 'word') return ['return', 'co_return', 'throw'].includes(before.text);
    if (/^&&?$/.test(before.text) && tokens[at - 2].text === 'auto') return false;
    return before.kind === 'sign' && !/^[)\]]$/.test(before.text);
  }

  function group(depth) {
    const closing = CLOSING[tokens[at].text] ?? fail(`expected a bracket, found '${tokens[at].text}'`);
    at++;
    expression(depth, (next) => next === closing);
    expect(closing);
  }

  while (at < tokens.length) declaration();
  return functions;
}
