// ollama: requests of Ollama's API, their answers, and what it tells of models.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using namespace std::chrono_literals;
using test::error_of;
using test::outline;
using test::script;
using strings = std::vector<std::string>;
using tree = test::json;  // compares without regard to the order of members

namespace {

const std::string png = "iVBORw0KGgoAAAA=";

reply_context at_noon() {
  reply_context context{"ID", 1};
  context.times = [] {
    const std::chrono::system_clock::time_point noon{1'795'996'800s + 123'456'789ns};
    return answer_times{noon, 900ns, 200ns, 300ns, 400ns};
  };
  return context;
}

parsed_request chat(const std::string& body) {
  return ollama::parse_chat(parse_body(body), at_noon());
}
turn_request chat_turn(const std::string& messages, const std::string& more = "") {
  auto parsed = chat(R"({"model":"m","messages":[)" + messages + "]" + more + "}");
  REQUIRE(parsed.turns.size() == 1);
  return std::move(parsed.turns[0]);
}
turn_request turn_with(const std::string& fields) {
  return chat_turn(R"({"role":"user","content":"Hi"})", "," + fields);
}
parsed_request generate(const std::string& fields) {
  return ollama::parse_generate(parse_body(R"({"model":"m")" + fields + "}"), at_noon());
}
turn_request generate_turn(const std::string& fields) {
  auto parsed = generate("," + fields);
  REQUIRE(parsed.turns.size() == 1);
  return std::move(parsed.turns[0]);
}

/// The `param` of the 400 that a request with these fields gets.
std::string param_of(const std::string& fields) {
  const auto error = error_of([&] { turn_with(fields); });
  CHECK(error.kind == error_kind::invalid_request);
  return error.param;
}

std::unique_ptr<reply> chat_writer() {
  return chat(R"({"messages":[{"role":"user","content":"Hi"}]})").reply;
}
std::unique_ptr<reply> generate_writer() { return generate(R"(,"prompt":"Hi")").reply; }

std::vector<tree> lines_of(const std::string& bytes) {
  std::vector<tree> lines;
  for (const auto& line : text::split(bytes, '\n')) {
    if (!line.empty()) lines.push_back(tree::parse(line));
  }
  CHECK(bytes.back() == '\n');
  return lines;
}

/// Without what every object has.
std::vector<tree> bare(std::vector<tree> lines) {
  for (auto& line : lines) {
    CHECK(line.at("model") == "claude-x");
    CHECK(line.at("created_at") == "2026-11-30T00:00:00.123456789Z");
    line.erase("model");
    line.erase("created_at");
  }
  return lines;
}

tree said(const tree& message) {
  auto whole = message;
  whole["role"] = "assistant";
  return {{"message", whole}, {"done", false}};
}

const tree figures = {{"total_duration", 900},     {"load_duration", 200},
                      {"prompt_eval_count", 3211}, {"prompt_eval_duration", 300},
                      {"eval_count", 70},          {"eval_duration", 400}};

tree ended(const std::string& reason, const tree& said) {
  auto whole = figures;
  whole["done"] = true;
  whole["done_reason"] = reason;
  whole.update(said);
  return whole;
}

}  // namespace

// ---- requests ----------------------------------------------------------------------------------

TEST_CASE(
    "ollama: messages keep their roles, whatever the case of letters, and images come first") {
  const auto turn = chat_turn(R"({"role":"system","content":"Be brief."},
      {"role":"User","content":"Look","images":[")" +
                              png + R"(","data:image/png;base64,)" + png +
                              R"("]},{"role":"assistant","content":"Yes?"},
      {"role":"user","content":"Well?"})");
  const auto image = "image(image/png," + png + ")";
  CHECK(outline(turn) ==
        "{Be brief.} user: " + image + " " + image + " <Look> assistant: <Yes?> user: <Well?>");
  CHECK(turn.ignored_params.empty());
}

TEST_CASE("ollama: a client streams unless it says otherwise") {
  CHECK(turn_with(R"("stream":null)").stream);
  CHECK_FALSE(turn_with(R"("stream":false)").stream);
  CHECK(generate_turn(R"("prompt":"Hi")").stream);
}

TEST_CASE("ollama: results go to the calls that they name, by id or tool, else in their order") {
  const std::string user = R"({"role":"user","content":"?"},)";
  const auto asked = [&](const strings& ids, const std::string& results) {
    std::string calls;
    const strings names{"look", "hear", "look"};
    for (std::size_t i = 0; i < names.size(); ++i) {
      calls += (i > 0 ? ",{" : "{") + (ids.empty() ? "" : R"("id":")" + ids[i] + R"(",)") +
               R"("function":{"name":")" + names[i] + R"(","arguments":{"n":)" + std::to_string(i) +
               "}}}";
    }
    const auto turn = chat_turn(user + R"({"role":"assistant","content":"","tool_calls":[)" +
                                calls + "]}," + results);
    std::string told;
    for (const auto& part : turn.messages.back().parts) {
      const auto& result = std::get<tool_result_part>(part);
      const auto place = place_of_call(turn.messages[1], result.call_id);
      told += std::get<text_part>(result.content.at(0)).text + std::to_string(place) + " ";
    }
    return told;
  };
  const auto result = [](const std::string& words, const std::string& more = "") {
    return R"({"role":"tool","content":")" + words + "\"" + more + "}";
  };
  const auto by_name = [&](const std::string& words, const std::string& name) {
    return result(words, R"(,"tool_name":")" + name + "\"");
  };
  const auto by_id = [&](const std::string& words, const std::string& id) {
    return result(words, R"(,"tool_call_id":")" + id + "\"");
  };
  CHECK(asked({}, result("a") + "," + result("b") + "," + result("c")) == "a0 b1 c2 ");
  CHECK(asked({}, by_name("b", "hear") + "," + by_name("a", "look") + "," + by_name("c", "look")) ==
        "b1 a0 c2 ");
  CHECK(asked({"x", "y", "z"}, by_id("c", "z") + "," + by_id("a", "x") + "," + by_id("b", "y")) ==
        "c2 a0 b1 ");
  CHECK(asked({}, by_id("a", "x") + "," + by_name("b", "hear") + "," + result("c")) == "a0 b1 c2 ");
}

TEST_CASE("ollama: a result without a call is a 400, and so is a call without a result") {
  const auto settled = [](const std::string& messages) {
    auto turn = chat_turn(messages);
    return error_of([&] { match_tool_calls(turn.messages, turn.messages_field); }).message;
  };
  CHECK(settled(R"({"role":"user","content":"?"},{"role":"tool","content":"x"})")
            .find("did not make") != std::string::npos);
  CHECK(settled(R"({"role":"user","content":"?"},{"role":"assistant",
      "tool_calls":[{"function":{"name":"look","arguments":{}}}]},{"role":"user","content":"Well?"})")
            .find("must hold a result") != std::string::npos);
}

TEST_CASE("ollama: tools as Ollama writes them, with or without a type of their parameters") {
  const auto turn = turn_with(R"("tools":[{"type":"function","function":{"name":"look",
      "description":"Sees","parameters":{"properties":{"city":{"type":["string","null"]}}}}}])");
  REQUIRE(turn.tools.size() == 1);
  CHECK(turn.tools[0].name == "look");
  CHECK(turn.tools[0].description == "Sees");
  CHECK(turn.tools[0].schema["type"] == "object");
}

TEST_CASE("ollama: format is nothing, any JSON object, or a schema") {
  CHECK_FALSE(turn_with(R"("format":"")").schema.has_value());
  CHECK_FALSE(turn_with(R"("format":null)").schema.has_value());
  CHECK(dump(*turn_with(R"("format":"json")").schema) == R"({"type":"object"})");
  const auto schema = turn_with(R"("format":{"type":"object","properties":{"a":{}}})").schema;
  CHECK((*schema)["properties"].contains("a"));
  CHECK(param_of(R"("format":"xml")") == "format");
  CHECK(param_of(R"("format":{"type":"array"})") == "format");
}

TEST_CASE("ollama: think is a wish to see thoughts, an effort, or none of it") {
  auto thinks = turn_with(R"("think":true)");
  apply_model_limits(thinks, {});
  CHECK(thinks.shows_thinking);
  CHECK(thinks.thinking_tokens.value_or(0) > 0);
  CHECK(thinks.effort == reasoning_effort::none);  // the model's own
  CHECK(turn_with(R"("think":"high")").effort == reasoning_effort::high);
  CHECK(turn_with(R"("think":"max")").effort == reasoning_effort::max);
  auto silent = turn_with(R"("think":false)");
  CHECK(silent.no_thinking);
  model_traits stubborn;
  stubborn.always_thinks = true;
  apply_model_limits(silent, stubborn);
  CHECK(silent.ignored_params == strings{"think"});
  CHECK(param_of(R"("think":"very")") == "think");
  CHECK(param_of(R"("think":1)") == "think");
}

TEST_CASE("ollama: options that the API knows are passed on") {
  const auto sampling = turn_with(R"("options":{"temperature":0.5,"top_p":0.9,"top_k":40,
      "num_predict":100,"stop":["a","b","c","d","e"]})")
                            .sampling;
  CHECK(sampling.temperature == 0.5);
  CHECK(sampling.top_p == 0.9);
  CHECK(sampling.top_k == 40);
  CHECK(sampling.max_tokens == 100);
  CHECK(sampling.stop.size() == 5);
  for (const char* endless : {"-1", "-2", "0"}) {
    const auto turn =
        turn_with(R"("options":{"top_k":0,"num_predict":)" + std::string(endless) + "}");
    CHECK_FALSE(turn.sampling.max_tokens.has_value());
    CHECK_FALSE(turn.sampling.top_k.has_value());
    CHECK(turn.ignored_params.empty());
  }
  CHECK(param_of(R"("options":{"temperature":"warm"})") == "options.temperature");
  CHECK(param_of(R"("options":{"num_predict":1.5})") == "options.num_predict");
  CHECK(param_of(R"("options":[])") == "options");
}

TEST_CASE("ollama: any other option is named, unless it asks for nothing") {
  CHECK(turn_with(R"("options":{"seed":1,"num_ctx":8192,"mirostat":1,"own":"x"})").ignored_params ==
        strings{"options.seed", "options.num_ctx", "options.mirostat", "options.own"});
  CHECK(turn_with(R"("options":{"repeat_penalty":1.0,"presence_penalty":0,"min_p":0.0,"numa":false,
      "tfs_z":1,"seed":null})")
            .ignored_params.empty());
}

TEST_CASE("ollama: fields that nothing here honours are named, unless they ask for nothing") {
  CHECK(turn_with(R"("truncate":true,"logprobs":true,"top_logprobs":2,"shift":true)")
            .ignored_params == strings{"truncate", "logprobs", "top_logprobs", "shift"});
  CHECK(turn_with(R"("truncate":false,"logprobs":false,"top_logprobs":0,"keep_alive":"5m")")
            .ignored_params.empty());
  CHECK(generate_turn(R"("prompt":"Hi","template":"{{ .Prompt }}","raw":true)").ignored_params ==
        strings{"template", "raw"});
  CHECK(generate_turn(R"("prompt":"Hi","template":"","raw":false,"context":[],"suffix":"",
      "system":"")")
            .ignored_params.empty());
  CHECK(chat_turn(R"({"role":"user","content":"a"},{"role":"assistant","content":"b",
      "thinking":"hm","images":[")" +
                  png + R"("]},{"role":"user","content":"c"})")
            .ignored_params == strings{"messages.images", "messages.thinking"});
}

TEST_CASE("ollama: generate takes a prompt, instructions and images, or a gap to fill") {
  CHECK(outline(generate_turn(R"("prompt":"Hi","system":"Be brief.","images":[")" + png + "\"]")) ==
        "{Be brief.} user: image(image/png," + png + ") <Hi>");
  const auto gap = generate_turn(R"("prompt":"def f(","suffix":"return x","system":"In Python.")");
  CHECK(outline(gap) == "{" + std::string(openai_completions::infill_instructions) +
                            "\nIn Python.} user: <<prefix>def f(</prefix><suffix>return "
                            "x</suffix>>");
  const auto error = error_of([] { generate(R"(,"prompt":"Hi","context":[1,2])"); });
  CHECK(error.param == "context");
}

TEST_CASE("ollama: what is no image, no message and no role is a 400 that names it") {
  const auto param = [](const std::string& message) {
    return error_of([&] { chat_turn(message); }).param;
  };
  CHECK(param(R"({"role":"user","images":["JVBERi0xLjQK"]})") == "messages[0].images[0]");
  CHECK(param(R"({"role":"user","images":["?"]})") == "messages[0].images[0]");
  CHECK(param(R"({"role":"user","content":["a"]})") == "messages[0].content");
  CHECK(param(R"({"role":"robot","content":"a"})") == "messages[0].role");
  CHECK(param(R"({"content":"a"})") == "messages[0].role");
  CHECK(param(R"({"role":"assistant","tool_calls":[{"function":{}}]})") ==
        "messages[0].tool_calls[0].function.name");
}

TEST_CASE(
    "ollama: a request that asks for nothing loads or unloads a model, and nothing is asked") {
  const auto loaded = [](const parsed_request& parsed) {
    CHECK(parsed.turns.empty());
    auto whole = tree::parse(parsed.reply->render({}));
    CHECK(whole.at("model") == "m");
    CHECK(whole.at("done") == true);
    CHECK(whole.contains("created_at"));
    return whole;
  };
  const tree message{{"role", "assistant"}, {"content", ""}};
  for (const char* fields : {R"("messages":[])", R"("stream":true)"}) {
    const auto whole = loaded(chat(std::string(R"({"model":"m",)") + fields + "}"));
    CHECK(whole.at("done_reason") == "load");
    CHECK(whole.at("message") == message);
  }
  CHECK(loaded(generate("")).at("response") == "");
  CHECK(loaded(generate(R"(,"prompt":"","keep_alive":"5m")")).at("done_reason") == "load");
  CHECK(loaded(generate(R"(,"keep_alive":0)")).at("done_reason") == "unload");
  CHECK(loaded(generate(R"(,"keep_alive":"0")")).at("done_reason") == "unload");
}

TEST_CASE("ollama: a body of the other endpoint is a 400 that names it, and no load") {
  const auto prompt = error_of([] { chat(R"({"prompt":"Hi"})"); });
  CHECK(prompt.param == "prompt");
  CHECK(prompt.message.find("/api/generate") != std::string::npos);
  const auto messages =
      error_of([] { generate(R"(,"messages":[{"role":"user","content":"Hi"}])"); });
  CHECK(messages.param == "messages");
}

// ---- answers -----------------------------------------------------------------------------------

TEST_CASE("ollama: a stream of lines: thoughts, text, whole calls, and the end with its figures") {
  const auto told = script()
                        .thinking({"Hm"}, "sig")
                        .text({"Sun", "ny"})
                        .call("toolu_1", "look", {R"({"ci)", R"(ty":"Rome"})"})
                        .call("toolu_2", "hear", {})
                        .stop(stop_reason::tool_use);
  const auto call = [](const char* id, int index, const char* name, const tree& arguments) {
    const tree function{{"index", index}, {"name", name}, {"arguments", arguments}};
    return tree{{"content", ""}, {"tool_calls", {{{"id", id}, {"function", function}}}}};
  };
  const auto lines = bare(lines_of(test::written(*chat_writer(), told)));
  REQUIRE(lines.size() == 6);
  CHECK(lines[0] == said({{"content", ""}, {"thinking", "Hm"}}));
  CHECK(lines[1] == said({{"content", "Sun"}}));
  CHECK(lines[2] == said({{"content", "ny"}}));
  CHECK(lines[3] == said(call("toolu_1", 0, "look", {{"city", "Rome"}})));
  CHECK(lines[4] == said(call("toolu_2", 1, "hear", tree::object())));
  const tree nothing{{"role", "assistant"}, {"content", ""}};
  CHECK(lines[5] == ended("stop", {{"message", nothing}}));
  CHECK(std::string(chat_writer()->stream_type()) == "application/x-ndjson");
}

TEST_CASE("ollama: not streamed, the same is one object") {
  const auto told = script()
                        .thinking({"Hm"}, "sig")
                        .text({"Sun", "ny"})
                        .call("toolu_1", "look", {R"({"city":"Rome"})"})
                        .stop();
  const tree function{{"index", 0}, {"name", "look"}, {"arguments", {{"city", "Rome"}}}};
  const tree message{{"role", "assistant"},
                     {"content", "Sunny"},
                     {"thinking", "Hm"},
                     {"tool_calls", {{{"id", "toolu_1"}, {"function", function}}}}};
  CHECK(bare({test::rendered(*chat_writer(), told)})[0] == ended("stop", {{"message", message}}));
}

TEST_CASE("ollama: generate tells its text as the response") {
  const auto told = script().thinking({"Hm"}, "").text({"Sunny"}).stop(stop_reason::max_tokens);
  const auto lines = bare(lines_of(test::written(*generate_writer(), told)));
  CHECK(lines[0] == tree{{"response", ""}, {"thinking", "Hm"}, {"done", false}});
  CHECK(lines[1] == tree{{"response", "Sunny"}, {"done", false}});
  CHECK(lines[2] == ended("length", {{"response", ""}}));
  CHECK(bare({test::rendered(*generate_writer(), told)})[0] ==
        ended("length", {{"response", "Sunny"}, {"thinking", "Hm"}}));
}

TEST_CASE("ollama: the end tells why, in Ollama's words where it has one") {
  const auto reason = [](stop_reason why) {
    return test::rendered(*chat_writer(), script().stop(why)).at("done_reason");
  };
  CHECK(reason(stop_reason::end_turn) == "stop");
  CHECK(reason(stop_reason::stop_sequence) == "stop");
  CHECK(reason(stop_reason::tool_use) == "stop");
  CHECK(reason(stop_reason::max_tokens) == "length");
  CHECK(reason(stop_reason::turn_limit) == "length");
  CHECK(reason(stop_reason::refusal) == "content_filter");
}

TEST_CASE("ollama: a call that the token limit has cut is told by the end alone") {
  const auto told = script().call("toolu_1", "look", {R"({"ci)"}).stop(stop_reason::max_tokens);
  CHECK_FALSE(test::rendered(*chat_writer(), told).at("message").contains("tool_calls"));
  for (const auto& line : lines_of(test::written(*chat_writer(), told))) {
    CHECK_FALSE(line.at("message").contains("tool_calls"));
  }
}

TEST_CASE("ollama: a failure is a line, or a body, with the error's text alone") {
  const api_error error(error_kind::overloaded, "Overloaded");
  CHECK(ollama::render_error(error) == R"({"error":"Overloaded"})");
  const auto lines = lines_of(test::written(*chat_writer(), script().text({"Sun"}).fail(error)));
  CHECK(lines.back() == tree{{"error", "Overloaded"}});
}

TEST_CASE("ollama: silence is broken by a piece without text, which every client can parse") {
  std::string bytes;
  generate_writer()->write_keep_alive(bytes);
  const auto lines = lines_of(bytes);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].at("response") == "");
  CHECK(lines[0].at("done") == false);
  CHECK(lines[0].at("model") == "m");
}

TEST_CASE("ollama: what was thought in secret is no line") {
  const auto told = script().block(block_kind::redacted_thinking, {"c2VhbGVk"}).stop();
  CHECK(lines_of(test::written(*chat_writer(), told)).size() == 1);
}

// ---- models ------------------------------------------------------------------------------------

TEST_CASE("ollama: models have tags, and digests that can be cut") {
  const auto all = ollama::render_models(
      {{"sonnet", 0}, {"claude-opus-4-5-20251101", 1'761'955'200}, {"us.claude-v1:0", 0}});
  REQUIRE(all["models"].size() == 3);
  CHECK(all["models"][0]["name"] == "sonnet:latest");
  CHECK(all["models"][0]["model"] == "sonnet:latest");
  CHECK(all["models"][1]["modified_at"] == "2025-11-01T00:00:00.000Z");
  CHECK(all["models"][2]["name"] == "us.claude-v1:0");
  for (const auto& one : all["models"]) {
    const auto digest = one["digest"].get<std::string>();
    CHECK(digest.size() == 64);
    CHECK(digest.find_first_not_of("0123456789abcdef") == std::string::npos);
  }
  CHECK(all["models"][0]["digest"] != all["models"][1]["digest"]);
}

TEST_CASE("ollama: a model is described by what it can do, and by how much it reads") {
  const auto known = ollama::render_model({"claude-3-5-haiku-20241022", 0},
                                          traits_of("claude-3-5-haiku-20241022", {}));
  CHECK(known["capabilities"] ==
        claude_openai::json::array({"completion", "tools", "insert", "vision"}));
  const auto thinks = ollama::render_model({"sonnet", 0}, traits_of("sonnet", {}));
  CHECK(thinks["capabilities"].back() == "thinking");
  const auto length = [](const std::string& id) {
    const auto info = ollama::render_model({id, 0}, {})["model_info"];
    return info[info["general.architecture"].get<std::string>() + ".context_length"];
  };
  CHECK(length("sonnet") == 200'000);
  CHECK(length("claude-sonnet-4-5-20250929[1m]") == 1'000'000);
}
