// [06] conversation: one request in neutral form, whatever API it came by.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/support.hpp"

using claude_openai::continue_prompt;
using claude_openai::json;
using claude_openai::message;
using claude_openai::opening_prompt;
using claude_openai::role;
using claude_openai::text_part;
using claude_openai::tool_call_part;
using claude_openai::tool_result_part;

namespace {

message says(role author, const std::vector<std::string>& texts) {
  message said;
  said.author = author;
  for (const auto& text : texts) said.parts.emplace_back(text_part{text});
  return said;
}

message user(const std::vector<std::string>& texts) { return says(role::user, texts); }
message assistant(const std::vector<std::string>& texts) { return says(role::assistant, texts); }

message result_message(const std::string& id) { return {role::user, {tool_result_part{id, {}}}}; }

/// `u[a|b] a[c]`: who says what, part by part.
std::string outline(const std::vector<message>& messages) {
  std::string all;
  for (const auto& said : messages) {
    if (!all.empty()) all += ' ';
    all += said.author == role::user ? "u[" : "a[";
    for (std::size_t i = 0; i < said.parts.size(); ++i) {
      if (i > 0) all += '|';
      const auto& part = said.parts[i];
      if (const auto* text = std::get_if<text_part>(&part)) all += text->text;
      if (const auto* call = std::get_if<tool_call_part>(&part)) all += "call:" + call->id;
      if (const auto* result = std::get_if<tool_result_part>(&part)) {
        all += "result:" + result->call_id;
      }
    }
    all += ']';
  }
  return all;
}

std::string normalized(std::vector<message> messages) {
  claude_openai::normalize(messages);
  return outline(messages);
}

const std::string more(continue_prompt);
const std::string opening(opening_prompt);

std::string param_of_model(const std::string& text) {
  const json model = json::parse(text);
  return test::error_of([&] { parse_model(claude_openai::reader(model, "model")); }).param;
}

}  // namespace

TEST_CASE("normalize: a conversation that alternates and ends with the user is left as it is") {
  CHECK(normalized({user({"a"})}) == "u[a]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({"c"})}) == "u[a] a[b] u[c]");
}

TEST_CASE("normalize: neighbours of one role are joined and keep the order of their parts") {
  CHECK(normalized({user({"a", "b"}), user({"c"}), user({"d"})}) == "u[a|b|c|d]");
  CHECK(normalized({user({"a"}), assistant({"b"}), assistant({"c"}), user({"d"})}) ==
        "u[a] a[b|c] u[d]");
}

TEST_CASE("normalize: empty messages are dropped, and what they parted is joined") {
  CHECK(normalized({user({"a"}), assistant({}), user({"b"})}) == "u[a|b]");
  CHECK(normalized({user({}), user({"a"}), user({})}) == "u[a]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({}), assistant({"c"}), user({"d"})}) ==
        "u[a] a[b|c] u[d]");
}

TEST_CASE("normalize: where the user does not speak last, the user asks to go on") {
  CHECK(normalized({user({"a"}), assistant({"b"})}) == "u[a] a[b] u[" + more + "]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({})}) == "u[a] a[b] u[" + more + "]");
  CHECK(normalized({}) == "u[" + more + "]");
  CHECK(normalized({user({})}) == "u[" + more + "]");
}

TEST_CASE("normalize: where the assistant speaks first, a word of the user's is put before it") {
  CHECK(normalized({assistant({"b"}), user({"c"})}) == "u[" + opening + "] a[b] u[c]");
  CHECK(normalized({user({}), assistant({"b"}), assistant({"c"}), user({"d"})}) ==
        "u[" + opening + "] a[b|c] u[d]");
  CHECK(normalized({assistant({"b"})}) == "u[" + opening + "] a[b] u[" + more + "]");
  CHECK_FALSE(opening.empty());
}

TEST_CASE("normalize: tool calls and their results are parts like any other") {
  message call = assistant({"Let me look."});
  call.parts.emplace_back(tool_call_part{"1", "look", json::object()});
  message first;
  first.parts.emplace_back(tool_result_part{"1", {text_part{"sunny"}}});
  message second;
  second.parts.emplace_back(tool_result_part{"2", {text_part{"warm"}}});
  CHECK(normalized({user({"a"}), call, first, second, user({"and?"})}) ==
        "u[a] a[Let me look.|call:1] u[result:1|result:2|and?]");
  CHECK(normalized({user({"a"}), call, first}) == "u[a] a[Let me look.|call:1] u[result:1]");
}

TEST_CASE(
    "normalize: whatever comes in, roles alternate, nobody is silent, the user opens and ends") {
  CAPTURE(test::seed());
  test::generator random(6);
  for (int i = 0; i < 3'000; ++i) {
    std::vector<message> messages;
    std::string words;
    for (std::size_t n = random.below(7); n > 0; --n) {
      std::vector<std::string> texts;
      for (std::size_t k = random.below(3); k > 0; --k) texts.push_back(std::to_string(i));
      for (const auto& text : texts) words += text;
      messages.push_back(random.chance(50) ? user(texts) : assistant(texts));
    }
    claude_openai::normalize(messages);
    CAPTURE(outline(messages));
    REQUIRE_FALSE(messages.empty());
    REQUIRE(messages.front().author == role::user);
    REQUIRE(messages.back().author == role::user);
    std::string kept;
    for (std::size_t m = 0; m < messages.size(); ++m) {
      REQUIRE_FALSE(messages[m].parts.empty());
      if (m > 0) REQUIRE(messages[m].author != messages[m - 1].author);
      for (const auto& part : messages[m].parts) {
        const auto& text = std::get<text_part>(part).text;
        if (text != more && text != opening) kept += text;
      }
    }
    REQUIRE(kept == words);
  }
}

// ---- traces ------------------------------------------------------------------------------------

namespace {

using trace_key = std::pair<std::string, std::string>;

/// All that is compared of a request's trace.
trace_key key_of(const claude_openai::turn_request& request) {
  const auto trace = make_trace(request);
  return {trace.identity, trace.words};
}

/// A conversation in which the client's tools have been called: `ids` of calls and of results.
std::vector<message> with_calls(const std::vector<std::string>& calls,
                                const std::vector<std::string>& results) {
  message call = assistant({}), answer;
  for (const auto& id : calls) call.parts.emplace_back(tool_call_part{id, "f", json::object()});
  for (const auto& id : results) answer.parts.emplace_back(tool_result_part{id, {}});
  return {user({"q"}), call, answer};
}

claude_openai::conversation_trace trace_of(std::vector<message> messages) {
  claude_openai::turn_request request;
  request.messages = std::move(messages);
  return make_trace(request);
}

}  // namespace

TEST_CASE(
    "trace: who asks, whom, with what instructions and after what words, all make it differ") {
  std::set<trace_key> traces;
  std::size_t requests = 0;
  for (const std::string client : {"", "a", "ab"}) {
    for (const std::string model : {"", "a", "b"}) {
      for (const std::string system : {"", "a", "1:a"}) {
        for (const std::string words : {"", "a", "b", "u1:a", "a\n", " a"}) {
          claude_openai::turn_request request;
          request.client = client;
          request.model = model;
          request.system = system;
          request.messages = {user({words})};
          traces.insert(key_of(request));
          ++requests;
        }
      }
    }
  }
  CHECK(traces.size() == requests);
}

TEST_CASE("trace: no words can look like a border between parts or messages") {
  const std::vector<std::vector<message>> conversations = {
      {user({"a", "b"})},
      {user({"ab"})},
      {user({"au1:b"})},
      {user({"a"}), assistant({"b"})},
      {user({"a"}), assistant({"b"}), user({"c"})},
      {user({"a"}), assistant({"bu1:c"})},
      {user({"a"}), assistant({""}), user({"b"})},
      {assistant({"a"}), user({"b"})},
      {user({"a"}), assistant({"b"}), user({"c"}), assistant({"d"})}};
  std::set<std::string> traces;
  for (const auto& messages : conversations) {
    claude_openai::turn_request request;
    request.messages = messages;
    traces.insert(make_trace(request).words);
  }
  CHECK(traces.size() == conversations.size());
}

TEST_CASE("trace: two conversations that differ never have one trace") {
  CAPTURE(test::seed());
  test::generator random(19);
  const std::vector<std::string> pieces = {"a", "u", ":", "1", "u1:a", "u:a", "a1:u", "2", "c0:"};
  std::map<std::string, std::string> known;
  for (int i = 0; i < 20'000; ++i) {
    claude_openai::turn_request request;
    json told = json::array();
    for (std::size_t n = random.between(1, 3); n > 0; --n) {
      std::vector<std::string> texts;
      for (std::size_t k = random.between(1, 2); k > 0; --k) {
        texts.push_back(random.pick(pieces));
        if (random.chance(40)) texts.back() += random.pick(pieces);
      }
      const bool from_user = random.chance(60);
      if (!from_user) texts = {texts.front() + texts.back()};
      request.messages.push_back(from_user ? user(texts) : assistant(texts));
      told.push_back(json::array({from_user, texts}));
    }
    // Two messages of one role in a row do not come out of `normalize`.
    bool alternates = true;
    for (std::size_t m = 1; m < request.messages.size(); ++m) {
      alternates = alternates && request.messages[m].author != request.messages[m - 1].author;
    }
    if (!alternates) continue;
    const auto words = make_trace(request).words;
    const auto told_as = claude_openai::dump(told);
    const auto twin = known.emplace(words, told_as).first->second;
    REQUIRE(twin == told_as);
  }
  CHECK(known.size() > 2'000);
}

TEST_CASE("trace: tool calls and results are in it, with names, input and text, without ids") {
  const auto trace_of = [](const std::string& id, const std::string& name, const std::string& input,
                           const std::string& result) {
    claude_openai::turn_request request;
    message call = assistant({});
    call.parts.emplace_back(tool_call_part{id, name, json::parse(input)});
    message answer;
    answer.parts.emplace_back(tool_result_part{id, {text_part{result}}});
    request.messages = {user({"q"}), call, answer};
    return make_trace(request).words;
  };
  const auto base = trace_of("1", "f", "{}", "r");
  CHECK(base == trace_of("1", "f", "{ }", "r"));
  CHECK(base == trace_of("2", "f", "{}", "r"));
  CHECK(base != trace_of("1", "g", "{}", "r"));
  CHECK(base != trace_of("1", "f", "{\"a\":1}", "r"));
  CHECK(base != trace_of("1", "f", "{}", "s"));
}

TEST_CASE("trace: a result stands for a call by the call's place, whatever both are named") {
  const auto base = trace_of(with_calls({"1", "2"}, {"1", "2"})).words;
  CHECK(base == trace_of(with_calls({"x", "y"}, {"x", "y"})).words);
  CHECK(base == trace_of(with_calls({"2", "1"}, {"2", "1"})).words);
  CHECK(base != trace_of(with_calls({"1", "2"}, {"2", "1"})).words);
  CHECK(trace_of(with_calls({"1", "2"}, {"2"})).words !=
        trace_of(with_calls({"1", "2"}, {"1"})).words);
  for (const auto& words : {trace_of(with_calls({"toolu_secret"}, {"toolu_secret"})).words}) {
    CHECK(words.find("secret") == std::string::npos);
  }
}

TEST_CASE("trace: a reply of this turn has the trace that the client's copy of it has") {
  auto grown = trace_of({user({"q"})});
  const auto told = with_calls({"toolu_1", "toolu_2"}, {"toolu_2", "toolu_1"});
  append_message(grown, told[1], {});
  const auto sent_back = trace_of(with_calls({"call_a", "call_b"}, {"call_b", "call_a"}));
  CHECK(count_common(grown, sent_back) == 2);
  append_message(grown, told[2], told[1]);
  CHECK(grown.words == sent_back.words);
  CHECK(grown.ends == sent_back.ends);
}

TEST_CASE("trace: an assistant's texts count as one, without blanks at the ends") {
  const auto trace_of = [](const message& said) {
    claude_openai::conversation_trace trace;
    append_message(trace, said, {});
    return trace.words;
  };
  CHECK(trace_of(assistant({"Hello", " you"})) == trace_of(assistant({"Hello you"})));
  CHECK(trace_of(assistant({"\n Hello you \t"})) == trace_of(assistant({"Hello you"})));
  CHECK(trace_of(assistant({"Hello  you"})) != trace_of(assistant({"Hello you"})));
  CHECK(trace_of(user({"Hello", " you"})) != trace_of(user({"Hello you"})));
  CHECK(trace_of(user({"Hello "})) != trace_of(user({"Hello"})));
}

TEST_CASE("trace: it has an end for each message, and grows by a reply as by a message") {
  auto grown = trace_of({user({"a"})});
  append_message(grown, assistant({" b\n"}), {});
  const auto later = trace_of({user({"a"}), assistant({"b"}), user({"c"})});
  REQUIRE(grown.ends.size() == 2);
  REQUIRE(later.ends.size() == 3);
  CHECK(grown.ends.back() == grown.words.size());
  CHECK(later.words.substr(0, later.ends[1]) == grown.words);
}

TEST_CASE("trace: two conversations begin alike up to the first message that differs") {
  const auto common = [](const std::vector<message>& one, const std::vector<message>& other) {
    const auto count = count_common(trace_of(one), trace_of(other));
    CHECK(count == count_common(trace_of(other), trace_of(one)));
    return count;
  };
  const std::vector<message> chat = {user({"a"}), assistant({"b"}), user({"c"}), assistant({"d"})};
  CHECK(common(chat, chat) == 4);
  CHECK(common(chat, {}) == 0);
  CHECK(common({}, {}) == 0);
  CHECK(common(chat, {user({"a"}), assistant({"b"}), user({"c"})}) == 3);
  CHECK(common(chat, {user({"x"}), assistant({"b"}), user({"c"}), assistant({"d"})}) == 0);
  CHECK(common(chat, {user({"a"}), assistant({"b"}), user({"x"}), assistant({"d"})}) == 2);
  CHECK(common(chat, {user({"a"}), assistant({"b"}), user({"cc"})}) == 2);
  CHECK(common(chat, {user({"a", "c"}), assistant({"b"})}) == 0);
  CHECK(common({user({"a", "b"})}, {user({"a"})}) == 0);
  CHECK(common(with_calls({"1", "2"}, {"1", "2"}), with_calls({"1", "2"}, {"2", "1"})) == 2);
  CHECK(common(with_calls({"1", "2"}, {"1", "2"}), with_calls({"1"}, {"1"})) == 1);
}

TEST_CASE("trace: of any two conversations just as many messages are alike as are the same") {
  CAPTURE(test::seed());
  test::generator random(23);
  const std::vector<std::string> pieces = {"a", "aa", "u1:a", "a0:", "", "1"};
  for (int i = 0; i < 5'000; ++i) {
    std::vector<message> one, other;
    for (std::size_t n = random.between(1, 6); n > 0; --n) {
      const bool asks = one.size() % 2 == 0;
      const auto words = random.pick(pieces);
      one.push_back(asks ? user({words}) : assistant({words}));
      const auto twin = random.chance(80) ? words : random.pick(pieces);
      other.push_back(asks ? user({twin}) : assistant({twin}));
    }
    std::size_t same = 0;
    while (same < one.size() && outline({one[same]}) == outline({other[same]})) ++same;
    const auto cut = random.below(one.size() + 1);
    one.resize(cut);
    REQUIRE(count_common(trace_of(one), trace_of(other)) == std::min(same, cut));
  }
}

TEST_CASE("session id: free text of 1 to 256 characters, none of them a control character") {
  const auto parsed = [](const json& id) {
    return parse_session_id(claude_openai::reader(id, "session_id"));
  };
  for (const std::string id : {"a", "my chat", "é😀", "../../etc/passwd", "-", "\"quoted\""}) {
    CAPTURE(id);
    CHECK(parsed(id) == id);
  }
  CHECK(parsed(std::string(256, 'x')).size() == 256);
  std::string accents;
  for (int i = 0; i < 256; ++i) accents += "é";
  CHECK(parsed(accents) == accents);
  for (const json& wrong :
       {json(""), json(std::string(257, 'x')), json(accents + "é"), json("a\nb"), json("a\tb"),
        json("a\x7f"), json(std::string("a\0b", 3)), json(1), json(true), json::array()}) {
    CAPTURE(claude_openai::dump(wrong));
    CHECK(test::error_of([&] { parsed(wrong); }).param == "session_id");
  }
}

// ---- tool results ------------------------------------------------------------------------------

TEST_CASE("normalize: tool results come before all else in their message, each kind in its order") {
  message mixed = user({"a"});
  mixed.parts.emplace_back(tool_result_part{"1", {}});
  mixed.parts.emplace_back(text_part{"b"});
  mixed.parts.emplace_back(tool_result_part{"2", {}});
  CHECK(normalized({mixed}) == "u[result:1|result:2|a|b]");
  // A note between a call and its result is common: "calling the tool …", then the result.
  message call = assistant({});
  call.parts.emplace_back(tool_call_part{"1", "look", json::object()});
  CHECK(normalized({user({"q"}), call, user({"wait"}), result_message("1")}) ==
        "u[q] a[call:1] u[result:1|wait]");
}

namespace {

/// `u: q`, `a: 1 2` (calls), `r: 2 1` (results), one message each; joined as requests are.
std::vector<message> conversation_of(const std::vector<std::string>& told) {
  std::vector<message> messages;
  for (const auto& line : told) {
    message said;
    said.author = line[0] == 'a' ? role::assistant : role::user;
    for (const auto& word : claude_openai::text::split(line.substr(2), ' ')) {
      if (line[0] == 'a') said.parts.emplace_back(tool_call_part{word, "look", json::object()});
      if (line[0] == 'r') said.parts.emplace_back(tool_result_part{word, {}});
      if (line[0] == 'u') said.parts.emplace_back(text_part{word});
    }
    messages.push_back(std::move(said));
  }
  claude_openai::normalize(messages);
  return messages;
}

}  // namespace

/// The ids of the calls, message by message; each must have its result in the next one.
std::vector<std::vector<std::string>> make_ids(const std::vector<message>& messages) {
  std::vector<std::vector<std::string>> all;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    auto ids = call_ids(messages[i]);
    if (ids.empty()) continue;
    std::vector<std::string> answered;
    for (const auto& part : messages[i + 1].parts) {
      const auto* result = std::get_if<tool_result_part>(&part);
      if (result != nullptr) answered.push_back(result->call_id);
    }
    CHECK(std::is_permutation(ids.begin(), ids.end(), answered.begin(), answered.end()));
    all.push_back(std::move(ids));
  }
  return all;
}

TEST_CASE("tool results: each call has its result right after it, in any order") {
  const std::vector<std::vector<std::string>> fine = {{"u:q"},
                                                      {"u:q", "a:1", "r:1"},
                                                      {"u:q", "a:1 2 3", "r:3 1 2"},
                                                      {"u:q", "a:1 2", "r:2", "r:1"},
                                                      {"u:q", "a:1", "r:1", "u:more"},
                                                      {"u:q", "a:1", "u:wait", "r:1"},
                                                      {"u:q", "a:1", "r:1", "a:2", "r:2"},
                                                      {"u:q", "a:1", "r:1", "a:1", "r:1"}};
  for (const auto& told : fine) {
    CAPTURE(claude_openai::text::join(told, "; "));
    auto messages = conversation_of(told);
    CHECK_NOTHROW(match_tool_calls(messages));
  }
}

TEST_CASE("tool calls: each gets an id of its own that the API takes, and its result too") {
  using ids = std::vector<std::string>;
  const std::vector<std::pair<std::vector<std::string>, std::vector<ids>>> cases = {
      {{"u:q", "a:1", "r:1", "a:1", "r:1"}, {{"1"}, {"1-2"}}},
      {{"u:q", "a:1 1", "r:1 1"}, {{"1", "1-2"}}},
      {{"u:q", "a:x.y x:y", "r:x:y x.y"}, {{"x_y", "x_y-2"}}},
      // The CLI takes an id with a number behind it for a second one of that id.
      {{"u:q", "a:c_1 c_1_2", "r:c_1_2 c_1"}, {{"c_1", "c_1_2-2"}}},
      {{"u:q", "a:c_1_2 c_1", "r:c_1_2 c_1"}, {{"c_1_2", "c_1-2"}}},
      {{"u:q", "a:c_1 c_2", "r:c_1 c_2"}, {{"c_1", "c_2"}}}};
  for (const auto& [told, expected] : cases) {
    const auto shown = claude_openai::text::join(told, "; ");  // C++17 captures no binding
    CAPTURE(shown);
    auto messages = conversation_of(told);
    match_tool_calls(messages);
    const auto once = make_ids(messages);
    CHECK(once == expected);
    match_tool_calls(messages);  // what is settled stays
    CHECK(make_ids(messages) == once);
  }
}

TEST_CASE("tool results: what has no call, or a call without result, is a 400 that names the id") {
  const std::vector<std::pair<std::vector<std::string>, std::string>> refused = {
      {{"r:7"}, "7"},
      {{"u:q", "r:7"}, "7"},
      {{"u:q", "a:1", "r:7 1"}, "7"},
      {{"u:q", "a:1", "r:1", "r:1"}, "1"},
      {{"u:q", "a:1", "r:1", "a:2", "r:1 2"}, "1"},
      {{"u:q", "a:7"}, "7"},
      {{"u:q", "a:7", "u:never mind"}, "7"},
      {{"u:q", "a:1 7", "r:1"}, "7"},
      {{"u:q", "a:7", "u:wait", "a:1", "r:7 1"}, "7"},
      {{"u:q", "a:1", "r:1", "u:more", "a:7", "u:bye"}, "7"}};
  for (const auto& each : refused) {
    CAPTURE(claude_openai::text::join(each.first, "; "));
    auto messages = conversation_of(each.first);
    const auto error = test::error_of([&] { match_tool_calls(messages); });
    CHECK(error.kind == claude_openai::error_kind::invalid_request);
    CHECK(error.param == "messages");
    CHECK(error.message.find("'" + each.second + "'") != std::string::npos);
  }
}

// ---- JSON in a trace ---------------------------------------------------------------------------

namespace {

std::string traced(const std::string& text) {
  std::string words;
  claude_openai::append_json(words, json::parse(text));
  return words;
}

}  // namespace

TEST_CASE("trace: one value has one text, however it was written down") {
  const std::vector<std::pair<std::string, std::string>> same = {
      {R"({"b":1,"a":{"d":2,"c":3}})", R"({"a":{"c":3,"d":2},"b":1})"},
      {R"([{"b":1,"a":2}])", R"([{"a":2,"b":1}])"},
      {"[1.0, -2.0, 3e2]", "[1,-2,300]"},
      {"[-0.0]", "[0]"},
      {R"({ "a" : [ true , null , "x" ] })", R"({"a":[true,null,"x"]})"},
      {R"(["\u00e9\/"])", R"(["é/"])"}};
  for (const auto& each : same) {
    CAPTURE(each.first);
    CHECK(traced(each.first) == traced(each.second));
  }
}

TEST_CASE("trace: what is not the same stays apart") {
  const std::vector<std::string> values = {"1",
                                           "1.5",
                                           "\"1\"",
                                           "true",
                                           "null",
                                           "\"null\"",
                                           "[]",
                                           "{}",
                                           "[[]]",
                                           "[1,2]",
                                           "[2,1]",
                                           "\"a\"",
                                           "\"A\"",
                                           R"({"a":1})",
                                           R"({"a":"1"})",
                                           R"({"a":null})",
                                           R"([{"a":1},{"b":2}])",
                                           R"([{"a":1,"b":2}])",
                                           R"(["a",1])",
                                           R"(["1:a"])",
                                           "1e300",
                                           "9007199254740993",
                                           "9007199254740992",
                                           "18446744073709551615"};
  std::set<std::string> texts;
  for (const auto& value : values) texts.insert(traced(value));
  CHECK(texts.size() == values.size());
}

// ---- what is another conversation --------------------------------------------------------------

namespace {

using change = void (*)(claude_openai::turn_request&);

claude_openai::turn_request request_with_all() {
  claude_openai::turn_request request;
  request.messages = {user({"q"})};
  request.tools.push_back({"look", "Looks.", json::parse(R"({"type":"object"})")});
  request.tools.push_back({"see", "", json::object()});
  request.schema = json::parse(R"({"type":"object"})");
  request.agent.emplace();
  request.agent->tools = {"Bash", "Read"};
  request.messages.back().parts.emplace_back(claude_openai::media_part{
      claude_openai::media_part::media_kind::image, "image/png", "AAAA", {}, {}});
  return request;
}

trace_key trace_after(change change_it) {
  auto request = request_with_all();
  change_it(request);
  return key_of(request);
}

claude_openai::media_part& media_of(claude_openai::turn_request& request) {
  return std::get<claude_openai::media_part>(request.messages.back().parts.back());
}

}  // namespace

TEST_CASE("trace: tools, schema, effort, agent and media each make another conversation") {
  using claude_openai::turn_request;
  const std::vector<change> changes = {
      [](turn_request&) {},
      [](turn_request& r) { r.tools[0].name = "look2"; },
      [](turn_request& r) { r.tools[0].description = "Sees."; },
      [](turn_request& r) { r.tools[0].schema["required"] = json::array({"a"}); },
      [](turn_request& r) { std::swap(r.tools[0], r.tools[1]); },
      [](turn_request& r) { r.tools.pop_back(); },
      [](turn_request& r) { r.tools.clear(); },
      [](turn_request& r) { r.schema.reset(); },
      [](turn_request& r) { r.schema = json::object(); },
      [](turn_request& r) { r.effort = claude_openai::reasoning_effort::low; },
      [](turn_request& r) { r.effort = claude_openai::reasoning_effort::max; },
      [](turn_request& r) { r.agent.reset(); },
      [](turn_request& r) { r.agent->tools = {"Bash"}; },
      [](turn_request& r) { r.agent->tools = {}; },
      [](turn_request& r) { r.agent->disallowed = {"Bash"}; },
      [](turn_request& r) { r.agent->permission_mode = "plan"; },
      [](turn_request& r) { r.agent->max_turns = 3; },
      [](turn_request& r) { r.agent->directory = "/elsewhere"; },
      [](turn_request& r) { r.agent->mcp_config = "{}"; },
      [](turn_request& r) { media_of(r).media_type = "image/jpeg"; },
      [](turn_request& r) { media_of(r).data = "BBBB"; },
      [](turn_request& r) { media_of(r).title = "AAAA"; },
      [](turn_request& r) {
        media_of(r) = {{}, {}, {}, "http://x/AAAA", {}};
      },
      [](turn_request& r) { r.messages.back().parts.pop_back(); }};
  std::set<trace_key> traces;
  for (const auto& each : changes) traces.insert(trace_after(each));
  CHECK(traces.size() == changes.size());
}

TEST_CASE(
    "trace: the order of an object's members in a tool's schema makes no other conversation") {
  using claude_openai::turn_request;
  const auto sorted = trace_after([](turn_request& r) {
    r.tools[0].schema = json::parse(R"({"properties":{"a":{},"b":{"x":1,"y":2}},"type":"object"})");
  });
  const auto turned = trace_after([](turn_request& r) {
    r.tools[0].schema = json::parse(R"({"type":"object","properties":{"b":{"y":2,"x":1},"a":{}}})");
  });
  const auto other = trace_after([](turn_request& r) {
    r.tools[0].schema = json::parse(R"({"type":"object","properties":{"b":{"y":1,"x":2},"a":{}}})");
  });
  CHECK(sorted == turned);
  CHECK(sorted != other);
}

TEST_CASE("trace: what a running process can be told anew makes no other conversation") {
  using claude_openai::turn_request;
  const std::vector<change> changes = {
      [](turn_request& r) { r.sampling.temperature = 0.5; },
      [](turn_request& r) { r.sampling.top_p = 0.5; },
      [](turn_request& r) { r.sampling.max_tokens = 5; },
      [](turn_request& r) { r.sampling.stop = {"x"}; },
      [](turn_request& r) { r.choice.kind = claude_openai::tool_choice::how::any; },
      [](turn_request& r) { r.choice.parallel = false; },
      [](turn_request& r) { r.stream = true; },
      [](turn_request& r) { r.agent->show_activity = true; },
      [](turn_request& r) { r.session = "s"; },
      [](turn_request& r) { r.schema_field = "x"; },
      [](turn_request& r) { r.thinking_tokens = 2000; },
      [](turn_request& r) { r.ignored_params = {"seed"}; }};
  const auto base = key_of(request_with_all());
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    CHECK(trace_after(changes[i]) == base);
  }
}

namespace {

std::string trace_of_parts(std::vector<claude_openai::content_part> parts) {
  auto messages = with_calls({"1", "2"}, {});
  messages.back().parts = std::move(parts);
  return trace_of(std::move(messages)).words;
}

}  // namespace

TEST_CASE("trace: a result's words, order, media and failure are in it") {
  using claude_openai::media_part;
  const media_part image{media_part::media_kind::image, "image/png", "AAAA", {}, {}};
  const std::vector<tool_result_part> results = {{"1", {}, false},
                                                 {"1", {}, true},
                                                 {"2", {}, false},
                                                 {"1", {text_part{"a"}}, false},
                                                 {"1", {text_part{"a"}}, true},
                                                 {"1", {text_part{"a"}, text_part{"b"}}, false},
                                                 {"1", {text_part{"b"}, text_part{"a"}}, false},
                                                 {"1", {text_part{"ab"}}, false},
                                                 {"1", {image}, false},
                                                 {"1", {text_part{"a"}, image}, false},
                                                 {"1", {image, text_part{"a"}}, false}};
  std::set<std::string> traces;
  for (const auto& result : results) traces.insert(trace_of_parts({result}));
  CHECK(traces.size() == results.size());
}

TEST_CASE("trace: an image of the user's is not one of a tool's result") {
  using claude_openai::media_part;
  const media_part image{media_part::media_kind::image, "image/png", "AAAA", {}, {}};
  CHECK(trace_of_parts({tool_result_part{"1", {image}}}) !=
        trace_of_parts({tool_result_part{"1", {}}, image}));
}

TEST_CASE("trace: a document is not an image of the same address") {
  using claude_openai::media_part;
  const std::string url = "https://example.org/x";
  CHECK(trace_of_parts({media_part{media_part::media_kind::image, {}, {}, url, {}}}) !=
        trace_of_parts({media_part{media_part::media_kind::document, {}, {}, url, {}}}));
}

// ---- images and files --------------------------------------------------------------------------

namespace {

std::string media_problem(const std::string& type, const std::string& data) {
  const json field = "the field";
  claude_openai::media_part media;
  media.media_type = type;
  media.data = data;
  const auto error =
      test::error_of([&] { check_media(claude_openai::reader(field, "here"), media); });
  CHECK(error.param == "here");
  return error.message;
}

std::string settled_type(const std::string& type, const std::string& data) {
  const json field = "the field";
  claude_openai::media_part media;
  media.media_type = type;
  media.data = data;
  check_media(claude_openai::reader(field, "here"), media);
  return media.media_type;
}

}  // namespace

TEST_CASE("data uri: type and bytes; anything else is none") {
  const auto png = claude_openai::try_data_uri("data:Image/PNG;base64,iVBORw0KGgo=");
  REQUIRE(png);
  CHECK(png->media_type == "image/png");
  CHECK(png->data == "iVBORw0KGgo=");
  CHECK(png->url.empty());
  const auto spaced = claude_openai::try_data_uri("\n data: image/png;base64, AAAA \n");
  CHECK(spaced.value().media_type == "image/png");
  CHECK(claude_openai::try_data_uri("data:;base64,AAAA").value().media_type.empty());
  CHECK(claude_openai::try_data_uri("data:image/png;base64,").value().data.empty());
  for (const std::string none :
       {"", "data:", "data:image/png,AAAA", "data:image/png;base64", "http://x/;base64,AAAA",
        "image/png;base64,AAAA", "x data:image/png;base64,AAAA"}) {
    CAPTURE(none);
    CHECK_FALSE(claude_openai::try_data_uri(none));
  }
}

TEST_CASE("media: the type is what the bytes are, else what the client says") {
  const std::vector<std::pair<std::string, std::string>> kinds = {
      {"iVBORw0KGgoAAAAN", "image/png"},
      {"/9j/4AAQSkZJ", "image/jpeg"},
      {"R0lGODlhAQAB", "image/gif"},
      {"UklGRhIAAABXRUJQ", "image/webp"},
      {"JVBERi0xLjQK", "application/pdf"}};
  for (const auto& each : kinds) {
    CAPTURE(each.second);
    CHECK(settled_type("image/jpeg", each.first) == each.second);
    CHECK(settled_type("", each.first) == each.second);
    CHECK(settled_type("application/octet-stream", each.first) == each.second);
    CHECK(settled_type(each.second, "AAAA") == each.second);
  }
}

TEST_CASE("media: types that the API does not read are refused by name") {
  for (const std::string type :
       {"", "image/bmp", "image/svg+xml", "text/plain", "audio/wav", "image/png;charset=utf-8"}) {
    CAPTURE(type);
    CHECK(media_problem(type, "AAAA").find("'" + type + "'") != std::string::npos);
  }
}

TEST_CASE("media: what is no base64 is refused before anything is sent") {
  for (const std::string data :
       {"", "=", "A", " \n", "AAAA=AAA", "AA-_", "A===", "iVBORw0KGgo=\"", "é"}) {
    CAPTURE(data);
    CHECK(media_problem("image/png", data).find("base64") != std::string::npos);
  }
  for (const std::string data :
       {"AA", "AA==", "AAA", "AAA=", "AAAA", "A+/9", "AA AA", "AA\r\nAA\n", " AA\t=="}) {
    CAPTURE(data);
    CHECK(settled_type("image/png", data) == "image/png");
  }
}

TEST_CASE("media: images of 5 MiB and documents of 32 MiB are the largest") {
  const auto base64_of = [](std::size_t mib) {
    return std::string(mib * 1024 * 1024 / 3 * 4, 'A');
  };
  CHECK(settled_type("image/png", base64_of(5)) == "image/png");
  CHECK(media_problem("image/png", base64_of(5) + "AAAAAAAA").find("5 MiB") != std::string::npos);
  CHECK(settled_type("application/pdf", base64_of(32)) == "application/pdf");
  CHECK(media_problem("application/pdf", base64_of(32) + "AAAAAAAA").find("32 MiB") !=
        std::string::npos);
}

TEST_CASE("schema: the root is an object, said or not") {
  const auto parsed = [](const std::string& text) {
    const json schema = json::parse(text);
    return claude_openai::dump(parse_object_schema(claude_openai::reader(schema, "here")));
  };
  CHECK(parsed("{}") == R"({"type":"object"})");
  CHECK(parsed(R"({"properties":{"b":{},"a":{}}})") ==
        R"({"properties":{"b":{},"a":{}},"type":"object"})");
  CHECK(parsed(R"({"type":"object","required":["a"]})") == R"({"type":"object","required":["a"]})");
  for (const std::string wrong : {"[]", "\"object\"", "1", R"({"type":"array"})",
                                  R"({"type":["object","null"]})", R"({"type":null})"}) {
    CAPTURE(wrong);
    CHECK(test::error_of([&] { parsed(wrong); }).param == "here");
  }
}

// ---- models ------------------------------------------------------------------------------------

TEST_CASE("model: ids of all vendors' shapes are taken") {
  for (const std::string id :
       {"sonnet", "claude-sonnet-4-5-20250929", "sonnet[1m]", "us.anthropic.claude-opus-4-5-v1:0",
        "arn:aws:bedrock:us-east-1:123:inference-profile/x", "claude-opus-4-5@20251101",
        "vendor/model-1.5", "gpt-4o", "a", "_-", "~!$"}) {
    CAPTURE(id);
    const json model = id;
    CHECK(parse_model(claude_openai::reader(model, "model")) == id);
  }
}

TEST_CASE("model: an id that looks like a flag, or that no model has, is refused with its param") {
  for (const std::string wrong :
       {R"("-")", R"("--dangerously-skip-permissions")", R"("-p")", R"(" sonnet")", R"("son net")",
        R"("sonnet\n")", R"("a\tb")", R"("a\u0000b")", R"("a\u007fb")", R"("modèle")", "1", "true",
        R"(["sonnet"])", R"({})"}) {
    CAPTURE(wrong);
    CHECK(param_of_model(wrong) == "model");
  }
}

TEST_CASE("model: an id has at most 256 characters") {
  const json longest = std::string(256, 'a');
  CHECK(parse_model(claude_openai::reader(longest, "model")).size() == 256);
  CHECK(param_of_model('"' + std::string(257, 'a') + '"') == "model");
}

TEST_CASE(
    "trace: thoughts that a client brings must be those that are held, others may be missing") {
  const auto trace_with = [](const std::string& signature, const std::string& sealed) {
    claude_openai::conversation_trace trace;
    append_message(trace, {role::user, {text_part{"Hi"}}}, {});
    message said{role::assistant, {}};
    if (!signature.empty())
      said.parts.emplace_back(claude_openai::thinking_part{"hm", signature, {}});
    if (!sealed.empty()) said.parts.emplace_back(claude_openai::thinking_part{{}, {}, sealed});
    said.parts.emplace_back(text_part{"Hello"});
    append_message(trace, said, {});
    append_message(trace, {role::user, {text_part{"Go on"}}}, {});
    return trace;
  };
  const auto held = trace_with("mine", "");
  CHECK(count_common(held, trace_with("mine", "")) == 3);
  CHECK(count_common(held, trace_with("", "")) == 3);
  CHECK(count_common(held, trace_with("another's", "")) == 1);
  CHECK(count_common(held, trace_with("", "sealed")) == 1);
  CHECK(count_common(trace_with("", ""), held) == 1);
  CHECK(count_common(trace_with("", "sealed"), trace_with("", "sealed")) == 3);
}
