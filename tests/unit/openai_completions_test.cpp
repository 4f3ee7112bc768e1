// [13] openai_completions: requests of the legacy API, and their answers.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using test::error_of;
using test::outline;
using test::script;
using strings = std::vector<std::string>;
using tree = test::json;  // compares without regard to the order of members

namespace {

parsed_request parse_text(const std::string& body) {
  return openai_completions::parse(parse_body(body), {"ID", 1700000000});
}

parsed_request with(const std::string& fields) {
  return parse_text(R"({"prompt":"Once")" + (fields.empty() ? "" : "," + fields) + "}");
}

/// The `param` of the 400 that a body gets.
std::string param_of(const std::string& body) {
  const auto error = error_of([&] { parse_text(body); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK_FALSE(error.message.empty());
  return error.param;
}
std::string param_of_fields(const std::string& fields) {
  return param_of(R"({"prompt":"Once",)" + fields + "}");
}

/// What the user says in each turn.
strings asked(const parsed_request& parsed) {
  strings all;
  for (const auto& turn : parsed.turns) {
    REQUIRE(turn.messages.size() == 1);
    std::string words;
    for (const auto& part : turn.messages[0].parts) words += outline(part);
    all.push_back(words);
  }
  return all;
}

/// The turns' events, told to the writer in turn, one event of each at a time.
std::string interleaved(reply& writer, const std::vector<test::events>& turns) {
  std::string bytes;
  for (std::size_t at = 0, left = 1; left > 0; ++at) {
    left = 0;
    for (std::size_t choice = 0; choice < turns.size(); ++choice) {
      if (at >= turns[choice].size()) continue;
      writer.write(choice, turns[choice][at], bytes);
      ++left;
    }
  }
  return bytes;
}

tree whole(const reply& writer, const std::vector<test::events>& turns) {
  std::vector<turn_result> results;
  for (const auto& told : turns) {
    collector gathered;
    for (const auto& what : told) gathered.add(what);
    results.push_back(gathered.result());
  }
  return tree::parse(writer.render(results));
}

/// What a client gathers from the stream; checks the rules of the stream.
tree streamed(reply& writer, const std::vector<test::events>& turns) {
  const test::completions_stream_reader got(interleaved(writer, turns));
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  return got.whole;
}

tree choice(std::size_t index, const std::string& words, const std::string& reason) {
  return {{"text", words}, {"index", index}, {"logprobs", nullptr}, {"finish_reason", reason}};
}

}  // namespace

TEST_CASE("completions request: the smallest one has defaults for all the rest") {
  const auto parsed = with("");
  REQUIRE(parsed.turns.size() == 1);
  const auto& turn = parsed.turns[0];
  CHECK(outline(turn) ==
        "{" + std::string(openai_completions::continue_instructions) + "} user: <Once>");
  CHECK(turn.model.empty());
  CHECK_FALSE(turn.sampling.max_tokens);
  CHECK_FALSE(turn.sampling.temperature);
  CHECK_FALSE(turn.stream);
  CHECK(turn.tools.empty());
  CHECK_FALSE(turn.agent);
  CHECK(turn.ignored_params.empty());
}

TEST_CASE("completions request: a prompt is a text or several, never tokens") {
  CHECK(asked(parse_text(R"({"prompt":["one","two"]})")) == strings{"<one>", "<two>"});
  CHECK(param_of("{}") == "prompt");
  CHECK(param_of(R"({"prompt":[]})") == "prompt");
  CHECK(param_of(R"({"prompt":7})") == "prompt");
  CHECK(param_of(R"({"prompt":[1,2]})") == "prompt[0]");
  CHECK(param_of(R"({"prompt":["one",[1,2]]})") == "prompt[1]");
}

TEST_CASE("completions request: an empty prompt still gets the user to speak") {
  CHECK(asked(parse_text(R"({"prompt":""})")) == strings{"<" + std::string(continue_prompt) + ">"});
}

TEST_CASE("completions request: each prompt is asked n times, the choices of one together") {
  const auto parsed = parse_text(R"({"prompt":["a","b"],"n":3})");
  CHECK(asked(parsed) == strings{"<a>", "<a>", "<a>", "<b>", "<b>", "<b>"});
  CHECK(param_of_fields(R"("n":0)") == "n");
  CHECK(param_of_fields(R"("n":9)") == "n");
  CHECK(with(R"("n":8)").turns.size() == 8);
}

TEST_CASE("completions request: more than 32 completions at once are refused") {
  std::string four = R"("a","a","a","a")";
  CHECK(parse_text(R"({"n":8,"prompt":[)" + four + "]}").turns.size() == 32);
  CHECK(param_of(R"({"n":8,"prompt":[)" + four + R"(,"a"]})") == "prompt");
}

TEST_CASE("completions request: with a suffix the model is asked to fill the gap") {
  const auto parsed = parse_text(R"({"prompt":["if (","x"],"suffix":") {}"})");
  REQUIRE(parsed.turns.size() == 2);
  CHECK(outline(parsed.turns[0]) == "{" + std::string(openai_completions::infill_instructions) +
                                        "} user: <<prefix>if (</prefix><suffix>) {}</suffix>>");
  CHECK(asked(parsed)[1] == "<<prefix>x</prefix><suffix>) {}</suffix>>");
  for (const std::string none : {R"("suffix":null)", R"("suffix":"")"}) {
    CHECK(with(none).turns[0].system == openai_completions::continue_instructions);
  }
  CHECK(param_of_fields(R"("suffix":7)") == "suffix");
}

TEST_CASE("completions request: model, stream and limits are read") {
  const auto turn = with(R"("model":"m","stream":true,"temperature":0.5,"top_p":0.25,
                            "max_tokens":7,"stop":["a","b"])")
                        .turns[0];
  CHECK(turn.model == "m");
  CHECK(turn.stream);
  CHECK(turn.sampling.temperature == 0.5);
  CHECK(turn.sampling.top_p == 0.25);
  CHECK(turn.sampling.max_tokens == 7);
  CHECK(turn.sampling.stop == strings{"a", "b"});
  CHECK(with(R"("stop":"a")").turns[0].sampling.stop == strings{"a"});
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"model", R"("-x")"},
      {"stream", "1"},
      {"temperature", "2.1"},
      {"top_p", "-1"},
      {"max_tokens", "0"},
      {"best_of", "0"},
      {"echo", "1"},
      {"stop", "7"},
      {"stop", R"(["a","b","c","d","e"])"},
      {"presence_penalty", "2.5"},
      {"seed", R"("x")"}};
  for (const auto& [field, value] : wrong) {
    const auto tried = field + ": " + value;
    CAPTURE(tried);
    CHECK(param_of_fields("\"" + field + "\":" + value) == field);
  }
}

TEST_CASE("completions request: what cannot be honoured is named, what asks for nothing is not") {
  const auto ignored = [](const std::string& fields) {
    return with(fields).turns[0].ignored_params;
  };
  CHECK(ignored(R"("presence_penalty":1,"frequency_penalty":-1,"seed":7,"logit_bias":{"5":1},
                   "logprobs":2,"best_of":3)") == strings{"presence_penalty", "frequency_penalty",
                                                          "seed", "logprobs", "best_of",
                                                          "logit_bias"});
  CHECK(ignored(R"("presence_penalty":0,"frequency_penalty":0,"logit_bias":{},"logprobs":null,
                   "best_of":1,"user":"u")")
            .empty());
  CHECK(ignored(R"("unheard_of":1)") == strings{"unheard_of"});
}

TEST_CASE("completions request: a body that was meant for another endpoint is told which") {
  const auto error = error_of([] { parse_text(R"({"messages":[]})"); });
  CHECK(error.param == "messages");
  CHECK(error.message.find("/v1/chat/completions") != std::string::npos);
  CHECK(param_of(R"({"input":"x"})") == "input");
}

// ---- answers -----------------------------------------------------------------------------------

TEST_CASE("completions: the answer is the text alone, whole and streamed") {
  const std::vector<test::events> turns = {script()
                                               .thinking({"hm"}, "sig")
                                               .block(block_kind::redacted_thinking, {"x"})
                                               .block(block_kind::activity, {"Bash"})
                                               .text({" upon", " a"})
                                               .text({" time"})
                                               .stop()};
  const auto parsed = with(R"("stream_options":{"include_usage":true})");
  auto expected =
      tree{{"id", "cmpl-ID"},
           {"object", "text_completion"},
           {"created", 1700000000},
           {"model", "claude-x"},
           {"system_fingerprint", nullptr},
           {"choices", {choice(0, " upon a time", "stop")}},
           {"usage", tree::parse(openai_chat::render_usage(test::some_usage()).dump())}};
  CHECK(whole(*parsed.reply, turns) == expected);
  CHECK(streamed(*parsed.reply, turns) == expected);
  expected.erase("usage");
  CHECK(streamed(*with("").reply, turns) == expected);
  CHECK(streamed(*with(R"("stream_options":{})").reply, turns) == expected);
}

TEST_CASE("completions: each choice is told by its index, and usage is of all") {
  const auto parsed =
      parse_text(R"({"prompt":["a","b"],"n":2,"stream_options":{"include_usage":true}})");
  const std::vector<test::events> turns = {
      script().text({"1", "2", "3"}).stop(), script().text({}).stop(stop_reason::max_tokens),
      script().thinking({"hm"}, "").text({"4"}).stop(), script().stop(stop_reason::refusal)};
  const tree choices = {choice(0, "123", "stop"), choice(1, "", "length"), choice(2, "4", "stop"),
                        choice(3, "", "content_filter")};
  const auto answer = whole(*parsed.reply, turns);
  CHECK(answer["choices"] == choices);
  CHECK(answer["usage"]["prompt_tokens"] == 4 * 3211);
  CHECK(answer["usage"]["completion_tokens"] == 4 * 70);
  CHECK(streamed(*parsed.reply, turns) == answer);
}

TEST_CASE("completions: an echo comes before the text, in the choices of its own prompt") {
  const auto body = R"({"prompt":["a ","b "],"n":2,"echo":true})";
  const std::vector<test::events> turns(4, script().text({"x", "y"}).stop());
  const tree choices = {choice(0, "a xy", "stop"), choice(1, "a xy", "stop"),
                        choice(2, "b xy", "stop"), choice(3, "b xy", "stop")};
  CHECK(whole(*parse_text(body).reply, turns)["choices"] == choices);
  CHECK(streamed(*parse_text(body).reply, turns)["choices"] == choices);
  const auto quiet = with(R"("echo":false)");
  CHECK(whole(*quiet.reply, {turns[0]})["choices"][0]["text"] == "xy");
}

TEST_CASE("completions stream: [DONE] comes once, when all choices have stopped") {
  const auto parsed = with(R"("n":2)");
  const std::vector<test::events> turns = {script().stop(), script().text({"a"}).stop()};
  const auto bytes = interleaved(*parsed.reply, turns);
  const auto done = bytes.find("data: [DONE]\n\n");
  CHECK(done + 14 == bytes.size());
}

TEST_CASE("completions stream: a failure is an error in OpenAI's shape, and then the end") {
  const api_error failure(error_kind::overloaded, "too much");
  for (const auto& told :
       {script().text({"a"}).fail(failure), test::events{turn_failed{failure}}}) {
    const test::completions_stream_reader got(interleaved(*with("").reply, {told}));
    CHECK_MESSAGE(got.problem.empty(), got.problem);
    CHECK(got.error == tree{{"message", "too much"},
                            {"type", "server_error"},
                            {"param", nullptr},
                            {"code", "overloaded"}});
  }
}

TEST_CASE("completions stream: silence is broken by a comment, which changes nothing") {
  const auto parsed = with("");
  std::string bytes;
  for (const auto& what : script().text({"a", "b"}).stop()) {
    parsed.reply->write_keep_alive(bytes);
    parsed.reply->write(0, what, bytes);
  }
  CHECK(bytes.find(": keep-alive\n\n") == 0);
  const test::completions_stream_reader got(bytes);
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  CHECK(got.whole["choices"] == tree::array({choice(0, "ab", "stop")}));
}
