// [10] catalog: the models a client may name.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;

namespace {

strings ids_of(const std::vector<model_entry>& catalog) {
  strings ids;
  for (const auto& entry : catalog) ids.push_back(entry.id);
  return ids;
}

options with_default(const std::string& model) {
  options settings;
  settings.default_model = model;
  return settings;
}

}  // namespace

TEST_CASE("catalog: the operator's model, then the CLI's, then the well-known ones") {
  const auto ids = ids_of(make_catalog(with_default("mine"), {"reported-b", "reported-a"}));
  REQUIRE(ids.size() == 3 + well_known_models.size());
  CHECK(strings(ids.begin(), ids.begin() + 3) == strings{"mine", "reported-b", "reported-a"});
  CHECK(std::equal(well_known_models.begin(), well_known_models.end(), ids.begin() + 3));
}

TEST_CASE("catalog: each id is listed once, at its first place") {
  const auto ids = ids_of(make_catalog(with_default("sonnet"),
                                       {"claude-haiku-4-5-20251001", "sonnet", "x", "x", "haiku"}));
  CHECK(strings(ids.begin(), ids.begin() + 4) ==
        strings{"sonnet", "claude-haiku-4-5-20251001", "x", "haiku"});
  CHECK(std::set<std::string>(ids.begin(), ids.end()).size() == ids.size());
}

TEST_CASE("catalog: an id that was never released is not listed, and means the one that was") {
  const auto ids = ids_of(make_catalog(with_default("mine"), {}));
  const std::string wrong = "claude-opus-4-5-20250929";
  CHECK(std::count(ids.begin(), ids.end(), wrong) == 0);
  CHECK(claude_openai::released_model(wrong) == "claude-opus-4-5-20251101");
  CHECK(claude_openai::released_model("opus") == "opus");
}

TEST_CASE("catalog: without a CLI there are the operator's model and the well-known ones") {
  const auto ids = ids_of(make_catalog(with_default("mine"), {}));
  CHECK(ids.size() == 1 + well_known_models.size());
  for (const std::string known :
       {"claude-sonnet-4-5-20250929", "claude-opus-4-5-20251101", "sonnet"}) {
    CHECK(std::count(ids.begin(), ids.end(), known) == 1);
  }
}

TEST_CASE("catalog: the date at the end of an id is its time, at midnight UTC") {
  CHECK(release_time("claude-sonnet-4-5-20250929") == 1'759'104'000);
  CHECK(release_time("x-19700101") == 0);
  CHECK(release_time("x-20240229") == 1'709'164'800);
  CHECK(release_time("x-20251231") == 1'767'139'200);
}

TEST_CASE("catalog: an id without a date has no time") {
  for (const std::string id :
       {"", "sonnet", "-", "20250929", "x-2025092", "x-202509290", "x-2025-09-29", "x-2025092a",
        "x-20250929[1m]", "x-20250929-v1:0", "x20250929"}) {
    CAPTURE(id);
    CHECK(release_time(id) == 0);
  }
}

TEST_CASE("catalog: a model has OpenAI's fields") {
  CHECK(
      dump(render_model({"claude-x-20250929", 1'759'104'000})) ==
      R"({"id":"claude-x-20250929","object":"model","created":1759104000,"owned_by":"anthropic"})");
}

TEST_CASE("catalog: the list has OpenAI's fields and keeps the order") {
  CHECK(dump(render_models({{"b", 2}, {"a", 1}})) ==
        R"({"object":"list","data":[)"
        R"({"id":"b","object":"model","created":2,"owned_by":"anthropic"},)"
        R"({"id":"a","object":"model","created":1,"owned_by":"anthropic"}]})");
  CHECK(dump(render_models({})) == R"({"object":"list","data":[]})");
}

TEST_CASE("catalog: every id that it lists is one that a request may name") {
  for (const auto& entry : make_catalog(with_default("sonnet"), {"sonnet[1m]", "opus"})) {
    const json id = entry.id;
    CHECK(parse_model(reader(id, "model")) == entry.id);
  }
}

// ---- what a model refuses ------------------------------------------------------------------------

TEST_CASE("traits: by the generation in the id, which is no date") {
  struct row {
    const char* id;
    bool always_thinks;
    bool one_knob;
  };
  for (const auto& each :
       {row{"claude-3-5-haiku-20241022", false, false},
        row{"claude-3-7-sonnet-20250219", false, false},
        row{"claude-opus-4-20250514", false, true},  // retired: the CLI takes the newest
        row{"claude-sonnet-4-20250514", false, false}, row{"claude-sonnet-4-0", false, false},
        row{"claude-opus-4-1-20250805", false, true},
        row{"claude-sonnet-4-5-20250929", false, true}, row{"claude-opus-4-6", false, true},
        row{"claude-opus-4-7", true, true}, row{"claude-opus-5-5", true, true},
        row{"us.anthropic.claude-sonnet-4-5-20250929-v1:0", false, true},
        row{"claude-sonnet-4-5@20250929", false, true}, row{"sonnet", false, true},
        row{"opus[1m]", false, true}, row{"", false, true}}) {
    CAPTURE(std::string(each.id));
    CHECK(traits_of(each.id, {}).always_thinks == each.always_thinks);
    CHECK(traits_of(each.id, {}).one_sampling_knob == each.one_knob);
  }
}

TEST_CASE("traits: an id of Vertex AI's, or of a larger context, is no other model") {
  CHECK(traits_of("claude-sonnet-4-5@20250929", {}).one_sampling_knob);
  CHECK(traits_of("claude-opus-4-7@20260101", {}).always_thinks);
  CHECK(traits_of("claude-opus-4-7[1m]", {}).always_thinks);
}

TEST_CASE("traits: what the CLI reports of its models counts, for just these") {
  CHECK(traits_of("opus", {"opus"}).always_thinks);
  CHECK_FALSE(traits_of("sonnet", {"opus"}).always_thinks);
  CHECK_FALSE(traits_of("opus[1m]", {"opus"}).always_thinks);
}

namespace {

constexpr model_traits old_model{false, false};
constexpr model_traits new_model{false, true};
constexpr model_traits thinker{true, true};

/// What a request asks for, and what is left of it.
struct settled {
  const char* what;
  model_traits model;
  void (*ask)(turn_request&);
  std::string left;  ///< `temperature top_p thinking thinks | ignored`
};

std::string tell(const turn_request& request) {
  const auto number = [](const std::optional<double>& value) {
    return value ? dump(json(*value)) : std::string("-");
  };
  const auto& sampling = request.sampling;
  return number(sampling.temperature) + " " + number(sampling.top_p) + " " +
         std::to_string(request.thinking_tokens.value_or(0)) + (request.thinks ? " thinks" : "") +
         " | " + text::join(request.ignored_params, " ");
}

void check_settled(const std::vector<settled>& rows) {
  for (const auto& row : rows) {
    turn_request request;
    row.ask(request);
    apply_model_limits(request, row.model);
    CAPTURE(std::string(row.what));
    CHECK(tell(request) == row.left);
  }
}

}  // namespace

TEST_CASE("settle: temperature and top_p, alone and together") {
  using r = turn_request;
  check_settled(
      {{"nothing", new_model, [](r&) {}, "- - 0 | "},
       {"nothing", old_model, [](r&) {}, "- - 0 | "},
       {"warm", new_model, [](r& q) { q.sampling.temperature = 0.5; }, "0.5 - 0 | "},
       {"cold", new_model, [](r& q) { q.sampling.temperature = 0; }, "0.0 - 0 | "},
       {"one", new_model, [](r& q) { q.sampling.temperature = 1; }, "1.0 - 0 | "},
       {"hot", new_model, [](r& q) { q.sampling.temperature = 1.5; }, "1.0 - 0 | temperature"},
       {"p", new_model, [](r& q) { q.sampling.top_p = 0.5; }, "- - 0 | top_p"},
       {"p", old_model, [](r& q) { q.sampling.top_p = 0.5; }, "- 0.5 0 | "},
       {"both", old_model,
        [](r& q) {
          q.sampling.temperature = 0.5;
          q.sampling.top_p = 0.9;
        },
        "0.5 0.9 0 | "},
       {"both", new_model,
        [](r& q) {
          q.sampling.temperature = 0.5;
          q.sampling.top_p = 0.9;
        },
        "0.5 - 0 | top_p"},
       {"both, one of them in vain", new_model,
        [](r& q) {
          q.sampling.temperature = 0.5;
          q.sampling.top_p = 1;
        },
        "0.5 - 0 | "},
       {"both, hot", new_model,
        [](r& q) {
          q.sampling.temperature = 2;
          q.sampling.top_p = 0.9;
        },
        "1.0 - 0 | temperature top_p"}});
}

TEST_CASE("settle: each effort is a number of thinking tokens, and none is none") {
  std::int64_t last = -1;
  for (std::size_t i = 0; i < reasoning_effort_names.size(); ++i) {
    turn_request request;
    request.effort = static_cast<reasoning_effort>(i);
    apply_model_limits(request, new_model);
    CAPTURE(name_of(request.effort));
    const auto tokens = request.thinking_tokens.value_or(0);
    CHECK(tokens > last);
    CHECK((tokens == 0 || tokens >= 1024));
    CHECK(request.thinks == (tokens > 0));
    CHECK(request.shows_thinking == request.thinks);
    CHECK(request.ignored_params.empty());
    last = tokens;
  }
  CHECK(last == 31'999);
}

TEST_CASE("settle: thoughts are shown to who asks for them, not to who gets them anyhow") {
  for (const bool asks : {false, true}) {
    turn_request request;
    if (asks) request.thinking_tokens = 2048;
    apply_model_limits(request, thinker);
    CHECK(request.thinks);
    CHECK(request.shows_thinking == asks);
  }
}

TEST_CASE("settle: who thinks gets no temperature and no top_p, and is told so") {
  using r = turn_request;
  const auto ask = [](r& q) {
    q.effort = reasoning_effort::low;
    q.sampling.temperature = 0.5;
    q.sampling.top_p = 0.9;
  };
  const auto ask_in_vain = [](r& q) {
    q.effort = reasoning_effort::low;
    q.sampling.temperature = 1;
    q.sampling.top_p = 1;
  };
  const auto warm = [](r& q) { q.sampling.temperature = 0.5; };
  check_settled({{"both", new_model, ask, "- - 2048 thinks | temperature top_p"},
                 {"both", old_model, ask, "- - 2048 thinks | temperature top_p"},
                 {"in vain", new_model, ask_in_vain, "- - 2048 thinks | "},
                 {"a model that always thinks", thinker, warm, "- - 0 thinks | temperature"},
                 {"the same, asked to", thinker, ask, "- - 2048 thinks | temperature top_p"}});
}

TEST_CASE("settle: thinking needs room below the limit, and a model free to answer") {
  using r = turn_request;
  const auto high = [](r& q) { q.effort = reasoning_effort::high; };
  check_settled(
      {{"enough", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.sampling.max_tokens = 8193;
        },
        "- - 8192 thinks | "},
       {"less", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.sampling.max_tokens = 8192;
        },
        "- - 8191 thinks | "},
       {"the least", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.sampling.max_tokens = 1025;
        },
        "- - 1024 thinks | "},
       {"none", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.sampling.max_tokens = 1024;
          q.sampling.temperature = 0.5;
        },
        "0.5 - 0 | reasoning_effort"},
       {"by number", new_model, [](r& q) { q.thinking_tokens = 3000; }, "- - 3000 thinks | "},
       {"by number and word", new_model,
        [](r& q) {
          q.thinking_tokens = 3000;
          q.effort = reasoning_effort::max;
        },
        "- - 3000 thinks | "},
       {"a tool must be called", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.choice.kind = tool_choice::how::any;
        },
        "- - 0 | reasoning_effort"},
       {"this tool must be called", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.choice.kind = tool_choice::how::named;
        },
        "- - 0 | reasoning_effort"},
       {"no tool may be called", new_model,
        [](r& q) {
          q.effort = reasoning_effort::high;
          q.choice.kind = tool_choice::how::none;
        },
        "- - 8192 thinks | "},
       {"nothing in its way", thinker, high, "- - 8192 thinks | "}});
}

TEST_CASE(
    "settle: a stop text of white space is the proxy's own to cut at, the others stay in order") {
  turn_request request;
  const std::string wide = "\xC2\xA0\xE2\x80\x83\xE3\x80\x80\v\x1C";
  request.sampling.stop = {"a", " ", "\n\n", "b ", wide, "\xC2\xA1"};
  apply_model_limits(request, new_model);
  CHECK(request.sampling.stop == strings{"a", "b ", "\xC2\xA1"});
  CHECK(request.sampling.cut_at == strings{" ", "\n\n", wide});
  CHECK(request.ignored_params.empty());
}

TEST_CASE("traits: older models know fewer efforts, and the oldest do not think") {
  const std::vector<std::pair<std::string, int>> rows = {{"claude-sonnet-4-5-20250929", 0},
                                                         {"claude-haiku-4-5-20251001", 0},
                                                         {"claude-sonnet-4-20250514", 0},
                                                         {"claude-opus-4-5-20251101", 1},
                                                         {"claude-opus-4-6", 2},
                                                         {"claude-sonnet-4-6", 2},
                                                         {"claude-opus-4-8", 3},
                                                         {"claude-opus-4-1-20250805", 3},
                                                         {"claude-sonnet-5", 3},
                                                         {"sonnet", 3}};
  for (const auto& row : rows) {
    CAPTURE(row.first);
    CHECK(traits_of(row.first, {}).efforts == row.second);
    CHECK_FALSE(traits_of(row.first, {}).never_thinks);
  }
  CHECK(traits_of("claude-3-7-sonnet-20250219", {}).never_thinks);
}

TEST_CASE("settle: an effort that a model does not have is a number of tokens, or named") {
  const auto ignored_of = [](const char* model, reasoning_effort effort, bool messages) {
    turn_request request;
    request.effort = effort;
    if (messages) {
      request.thinking_field = "thinking";
      request.effort_field = "output_config.effort";
      request.thinking_tokens = 0;
    }
    apply_model_limits(request, traits_of(model, {}));
    return request.ignored_params;
  };
  using effort = reasoning_effort;
  const strings by_messages{"output_config.effort"};
  const strings by_openai{"reasoning_effort"};
  CHECK(ignored_of("claude-sonnet-4-5-20250929", effort::low, true) == by_messages);
  CHECK(ignored_of("claude-sonnet-4-5-20250929", effort::low, false).empty());
  CHECK(ignored_of("claude-opus-4-5-20251101", effort::high, true).empty());
  CHECK(ignored_of("claude-opus-4-5-20251101", effort::max, true) == by_messages);
  CHECK(ignored_of("claude-opus-4-5-20251101", effort::max, false).empty());
  CHECK(ignored_of("claude-sonnet-4-6", effort::max, false).empty());
  CHECK(ignored_of("claude-sonnet-4-6", effort::xhigh, false) == by_openai);
  CHECK(ignored_of("claude-opus-4-8", effort::xhigh, true).empty());
  CHECK(ignored_of("claude-3-7-sonnet-20250219", effort::high, false) == by_openai);
  CHECK(ignored_of("claude-3-7-sonnet-20250219", effort::none, false).empty());
}

TEST_CASE("settle: a tool that must be called takes the thinking from a request, not its effort") {
  turn_request request;
  request.thinking_field = "thinking";
  request.effort_field = "output_config.effort";
  request.thinking_tokens = 2000;
  request.effort = reasoning_effort::low;
  request.choice.kind = tool_choice::how::any;
  apply_model_limits(request, traits_of("claude-opus-4-5-20251101", {}));
  CHECK(request.ignored_params == strings{"thinking"});
  CHECK(request.effort == reasoning_effort::low);
}

TEST_CASE("settle: a stop text that nobody can cut at is named") {
  for (const auto& stop : {std::string(), std::string(257, ' ')}) {
    turn_request request;
    request.sampling.stop = {stop};
    apply_model_limits(request, new_model);
    CHECK(request.sampling.stop.empty());
    CHECK(request.sampling.cut_at.empty());
    CHECK(request.ignored_params == strings{"stop"});
  }
  turn_request by_schema;
  by_schema.schema = claude_openai::json::object();
  by_schema.sampling.stop = {"\n"};
  apply_model_limits(by_schema, new_model);
  CHECK(by_schema.sampling.cut_at.empty());
  CHECK(by_schema.ignored_params == strings{"stop"});
}

TEST_CASE("settle: what it has settled it leaves alone, and it names nothing twice") {
  turn_request request;
  request.ignored_params = {"seed", "temperature"};
  request.effort = reasoning_effort::high;
  request.sampling = {1.5, 0.9, {}, 4000, {"x", ""}};
  apply_model_limits(request, new_model);
  const auto once = tell(request);
  CHECK(request.ignored_params == strings{"seed", "temperature", "top_p", "stop"});
  apply_model_limits(request, new_model);
  CHECK(tell(request) == once);
}

TEST_CASE("settle: no thinking, asked for of a model that always thinks, is named") {
  claude_openai::model_traits always;
  always.always_thinks = true;
  for (const char* field : {"reasoning_effort", "thinking"}) {
    turn_request request;
    request.no_thinking = true;
    request.thinking_field = field;
    auto other = request;
    apply_model_limits(request, always);
    CHECK(request.ignored_params == strings{field});
    apply_model_limits(other, {});
    CHECK(other.ignored_params.empty());
  }
  turn_request silent;
  apply_model_limits(silent, always);
  CHECK(silent.ignored_params.empty());
}

TEST_CASE("settle: an effort of none is the least effort of a model that always thinks") {
  claude_openai::model_traits always;
  always.always_thinks = true;
  turn_request none;
  none.no_thinking = true;
  apply_model_limits(none, always);
  apply_model_limits(none, always);  // as often as one likes
  CHECK(none.effort == reasoning_effort::minimal);
  CHECK_FALSE(none.thinking_tokens);
  CHECK_FALSE(none.shows_thinking);
  turn_request messages;  // `thinking: disabled`, whose effort is another field
  messages.no_thinking = true;
  messages.thinking_tokens = 0;
  turn_request silent;
  for (auto* one : {&messages, &silent}) {
    apply_model_limits(*one, always);
    CHECK(one->effort == reasoning_effort::none);
  }
}

TEST_CASE("settle: a model that thinks cannot be forced to call a tool, and is asked to") {
  using how = claude_openai::tool_choice::how;
  claude_openai::model_traits always;
  always.always_thinks = true;
  for (const auto kind : {how::any, how::named, how::automatic, how::none}) {
    claude_openai::turn_request request;
    request.choice.kind = kind;
    request.choice.name = "look";
    const bool forced = kind == how::any || kind == how::named;
    apply_model_limits(request, always);
    CHECK(request.choice.kind == (forced ? how::automatic : kind));
    CHECK(request.nudge.empty() == !forced);
    CHECK((request.nudge.find("`look`") != std::string::npos) == (kind == how::named));
    CHECK(request.ignored_params ==
          (forced ? std::vector<std::string>{"tool_choice"} : std::vector<std::string>{}));
    claude_openai::turn_request other;
    other.choice.kind = kind;
    apply_model_limits(other, {});
    CHECK(other.choice.kind == kind);
    CHECK(other.nudge.empty());
  }
}

TEST_CASE("prices: by family and generation, those of Anthropic's list") {
  token_usage million;
  million.input = 1'000;
  million.output = 1'000'000;
  const auto output_price = [&](const std::string& model) {
    return estimate_cost(model, million) - price_of(model).input / 1000;
  };
  const std::vector<std::pair<std::string, double>> prices = {
      {"claude-sonnet-4-5-20250929", 15},
      {"claude-3-7-sonnet-20250219", 15},
      {"claude-sonnet-5", 10},
      {"claude-sonnet-5-5", 10},
      {"claude-opus-4-5-20251101", 25},
      {"claude-opus-4-1-20250805", 75},
      {"claude-3-opus-20240229", 75},
      {"claude-opus-5-5", 20},
      {"claude-haiku-4-5-20251001", 5},
      {"claude-3-5-haiku-20241022", 4},
      {"claude-3-haiku-20240307", 1.25},
      {"claude-haiku-5-5", 0.5},
      {"claude-fable-5-2", 40},
      {"claude-mythos-5", 50},
      {"opus", 20},
      {"sonnet", 10},
      {"us.anthropic.claude-opus-4-6-v1:0", 25}};
  for (const auto& each : prices) {
    CAPTURE(each.first);
    CHECK(output_price(each.first) == doctest::Approx(each.second));
  }
}

TEST_CASE("prices: a model that nobody knows costs as much as the dearest") {
  for (const std::string model : {"", "gpt-4o", "claude-9", "claude-unknown-9-20300101"}) {
    CAPTURE(model);
    for (const auto& known : model_prices) {
      CHECK(price_of(model).input >= known.input);
      CHECK(price_of(model).output >= known.output);
      CHECK(price_of(model).cache_read >= known.cache_read);
    }
  }
}

TEST_CASE("prices: each kind of token has its own") {
  const auto cost_of = [](std::int64_t token_usage::*kind, const char* model) {
    token_usage used;
    used.*kind = 100'000;
    if (kind == &token_usage::cache_write_5m) used.cache_write = 100'000;
    if (kind == &token_usage::cache_write_1h) used.cache_write = 100'000;
    return estimate_cost(model, used) * 10;
  };
  const auto* model = "claude-sonnet-4-5-20250929";
  CHECK(cost_of(&token_usage::input, model) == doctest::Approx(3));
  CHECK(cost_of(&token_usage::output, model) == doctest::Approx(15));
  CHECK(cost_of(&token_usage::cache_read, model) == doctest::Approx(0.3));
  CHECK(cost_of(&token_usage::cache_write_5m, model) == doctest::Approx(3.75));
  CHECK(cost_of(&token_usage::cache_write_1h, model) == doctest::Approx(6));
  CHECK(cost_of(&token_usage::cache_write, model) == doctest::Approx(6));  // lifetime not told
  token_usage large;
  large.input = 200'000;
  CHECK(estimate_cost("claude-haiku-5-5", large) == doctest::Approx(0.1));
  CHECK(estimate_cost("claude-haiku-4-5", large) == doctest::Approx(0.2));
}

TEST_CASE("aliases: the first pattern that fits the name counts, and only names are listed") {
  options settings;
  settings.aliases = {{"gpt-4o", "opus"}, {"gpt-*", "sonnet"}, {"o?", "haiku"}, {"*", "mine"}};
  const auto meant = [&](const std::string& name) { return find_alias(settings, name)->model; };
  CHECK(meant("gpt-4o") == "opus");
  CHECK(meant("gpt-4o-mini") == "sonnet");
  CHECK(meant("o3") == "haiku");
  CHECK(meant("o3-mini") == "mine");
  settings.aliases.pop_back();
  CHECK(find_alias(settings, "claude-x") == nullptr);
  const auto ids = ids_of(make_catalog(settings, {}));
  CHECK(std::count(ids.begin(), ids.end(), "gpt-4o") == 1);
  CHECK(std::none_of(ids.begin(), ids.end(), [](const std::string& id) {
    return id.find_first_of("*?") != std::string::npos;
  }));
}
