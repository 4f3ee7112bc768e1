// [27] metrics: figures for a monitor, and a line for the log.
#include <sstream>
#include <string>
#include <vector>

#include "tests/support.hpp"

using claude_openai::exposition;
using claude_openai::gauges;
using claude_openai::histogram;
using claude_openai::metrics;
using claude_openai::request_record;
using claude_openai::turn_facts;

namespace {

request_record chat(const std::string& model, int status = 200) {
  request_record record;
  record.id = "req_1";
  record.method = "POST";
  record.path = "/v1/chat/completions";
  record.route = "/chat/completions";
  record.dialect = "openai_chat";
  record.model = model;
  record.client = "key-2";
  record.address = "127.0.0.1";
  record.status = status;
  record.first_token = record.started + std::chrono::milliseconds(70);
  record.ended = record.started + std::chrono::milliseconds(800);
  record.usage.input = 10;
  record.usage.cache_read = 5;
  record.usage.output = 7;
  record.usage.cost_usd = 0.25;
  record.usage.charge_usd = 0.25;
  record.facts.origin = claude_openai::process_origin::spare;
  return record;
}

std::string figures(const metrics& all) { return all.render(gauges{{}, 3, "2.1.330"}); }

/// The value of a sample, by its name and labels as written; -1 when it is not there.
double value_of(const std::string& text, const std::string& sample) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, sample.size() + 1, sample + " ") == 0) {
      return std::stod(line.substr(sample.size()));
    }
  }
  return -1;
}

}  // namespace

TEST_CASE("metrics: a chat is counted in all that it was") {
  metrics all;
  all.begin();
  all.begin();
  all.finish(chat("sonnet"));
  const auto text = figures(all);
  const std::string p = "claude_openai_";
  CHECK(value_of(text, p + R"(requests_total{route="/chat/completions",dialect="openai_chat",)"
                           R"(model="sonnet",status="200"})") == 1);
  CHECK(value_of(text, p + "requests_in_flight") == 1);
  CHECK(value_of(text, p + R"(tokens_total{model="sonnet",kind="input"})") == 10);
  CHECK(value_of(text, p + R"(tokens_total{model="sonnet",kind="cache_read"})") == 5);
  CHECK(value_of(text, p + R"(tokens_total{model="sonnet",kind="output"})") == 7);
  CHECK(value_of(text, p + "cost_usd_total") == doctest::Approx(0.25));
  CHECK(value_of(text, p + R"(turns_total{process="spare"})") == 1);
  CHECK(value_of(text,
                 p + R"(time_to_first_token_seconds_bucket{dialect="openai_chat",le="0.05"})") ==
        0);
  CHECK(value_of(text,
                 p + R"(time_to_first_token_seconds_bucket{dialect="openai_chat",le="0.1"})") == 1);
  CHECK(value_of(text, p + R"(request_duration_seconds_bucket{dialect="openai_chat",le="+Inf"})") ==
        1);
  CHECK(value_of(text, p + R"(request_duration_seconds_sum{dialect="openai_chat"})") ==
        doctest::Approx(0.8));
  CHECK(value_of(text, p + "sessions") == 3);
  CHECK(text.find(R"(cli_version="2.1.330")") != std::string::npos);
}

TEST_CASE("metrics: answers are counted by how a process came to them, and by what that took") {
  using origin = claude_openai::process_origin;
  metrics all;
  for (const auto how : {origin::continued, origin::continued, origin::rewound, origin::spare,
                         origin::started, origin::none}) {
    auto record = chat("m");
    record.facts.origin = how;
    record.facts.rewound = how == origin::rewound ? 3 : 0;
    record.facts.replayed = how == origin::rewound || how == origin::started ? 4 : 0;
    all.begin();
    all.finish(record);
    CHECK(claude_openai::render_log_fields(record)["messages_replayed"] == record.facts.replayed);
    CHECK(claude_openai::render_log_fields(record)["messages_rewound"] == record.facts.rewound);
  }
  const auto text = figures(all);
  const auto turns = [&](const std::string& process) {
    return value_of(text, "claude_openai_turns_total{process=\"" + process + "\"}");
  };
  CHECK(turns("continued") == 2);
  CHECK(turns("rewound") == 1);
  CHECK(turns("spare") == 1);
  CHECK(turns("started") == 1);
  CHECK(turns("") == -1);
  CHECK(value_of(text, "claude_openai_messages_rewound_total") == 3);
  CHECK(value_of(text, "claude_openai_messages_replayed_total") == 8);
}

TEST_CASE("metrics: each process is in one state, and all of them are the processes there are") {
  claude_openai::process_counts counts;
  counts.spare = 3;
  counts.warm = 2;
  counts.busy = 4;
  counts.idle = 10;
  counts.parked = 2;
  counts.rewinding = 1;
  counts.stopping = 5;
  const auto text = metrics().render(gauges{counts, 0, {}});
  const auto state = [&](const std::string& name) {
    return value_of(text, "claude_openai_processes{state=\"" + name + "\"}");
  };
  CHECK(state("starting") == 1);
  CHECK(state("spare") == 2);
  CHECK(state("busy") == 4);
  CHECK(state("parked") == 2);
  CHECK(state("rewinding") == 1);
  CHECK(state("idle") == 7);
  CHECK(state("stopping") == 5);
}

TEST_CASE("metrics: failures behind the proxy are told apart from refusals") {
  metrics all;
  auto failed = chat("m", 503);
  failed.note_failure(claude_openai::upstream_error(529, "busy"));
  failed.facts.retries = 2;
  all.begin();
  all.finish(failed);
  auto busy = chat("m", 429);
  claude_openai::api_error error(claude_openai::error_kind::rate_limited, "none free");
  error.code = "processes_busy";
  busy.note_failure(error);
  all.begin();
  all.finish(busy);
  all.reject("rate_limit");
  const auto text = figures(all);
  CHECK(value_of(text, R"(claude_openai_upstream_errors_total{status="503"})") == 1);
  CHECK(text.find(R"(upstream_errors_total{status="429"})") == std::string::npos);
  CHECK(value_of(text, "claude_openai_upstream_retries_total") == 2);
  CHECK(value_of(text, R"(claude_openai_rejected_total{reason="rate_limit"})") == 1);
}

TEST_CASE("metrics: whose failure it was does not hang on its code") {
  using claude_openai::api_error;
  using claude_openai::error_kind;
  const auto counts = [](const api_error& error) {
    metrics all;
    auto failed = chat("m", http_status(error.kind));
    failed.note_failure(error);
    all.begin();
    all.finish(failed);
    return figures(all).find("upstream_errors_total{") != std::string::npos;
  };
  for (const auto kind : {error_kind::invalid_request, error_kind::unavailable,
                          error_kind::internal, error_kind::timed_out, error_kind::rate_limited}) {
    CHECK_FALSE(counts(api_error(kind, "ours")));
  }
  for (const int status : {400, 401, 404, 429, 504, 529}) {
    CHECK(counts(claude_openai::upstream_error(status, "the API's")));
  }
  CHECK(counts(api_error(error_kind::bad_gateway, "claude ended")));
}

TEST_CASE("metrics: clients cannot make up more names than a monitor can bear") {
  metrics all;
  for (int i = 0; i < 500; ++i) {
    all.begin();
    all.finish(chat("model-" + std::to_string(i)));
  }
  const auto text = figures(all);
  CHECK(text.find(R"(model="other")") != std::string::npos);
  CHECK(text.find(R"(model="model-499")") == std::string::npos);
}

TEST_CASE("metrics: a subscription's limits are shown as they were reported last") {
  std::vector<std::string> lines;
  const claude_openai::logger log(
      claude_openai::log_level::info,
      [&](claude_openai::log_level, std::string_view line) { lines.emplace_back(line); });
  claude_openai::limit_board board(log);
  board.note({"five_hour", "allowed", 0.25, 1'800'000'000}, 0);
  board.note({"five_hour", "allowed", 0.5, 1'800'000'000}, 0);
  CHECK(lines.empty());
  const auto text = metrics().render(gauges{{}, 0, {}, board.all()});
  CHECK(value_of(text, R"(claude_openai_subscription_utilization_ratio{window="five_hour"})") ==
        0.5);
  CHECK(
      value_of(text, R"(claude_openai_subscription_reset_timestamp_seconds{window="five_hour"})") ==
      1'800'000'000);
  CHECK(board.all().size() == 1);
  for (int i = 0; i < 2; ++i) board.note({"five_hour", "rejected", {}, 1'800'000'000, true}, 0);
  CHECK(board.all().at(0).utilization == 0.5);  // it is the same limit
  board.note({"five_hour", "", 0.6, 1'800'000'000}, 0);
  CHECK(board.all().at(0).status == "rejected");
  CHECK(board.all().at(0).extra_usage);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("the plan's limit five_hour is used up") != std::string::npos);
}

TEST_CASE(
    "limits of a plan: one that refuses is spent until it begins anew, extra usage as one takes "
    "it") {
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  const auto spent = [&](const claude_openai::usage_window& window, bool extra_usage,
                         const char* model = "claude-sonnet-4-5") {
    const claude_openai::logger log;
    claude_openai::limit_board board(log);
    board.note({"seven_day", "allowed_warning", 0.9, now + 500}, now);
    board.note(window, now);
    return board.find_spent(model, extra_usage).has_value();
  };
  for (const bool extra : {false, true}) {
    CHECK_FALSE(spent({"five_hour", "allowed", 1.0, now + 100}, extra));
    CHECK_FALSE(spent({"five_hour", "rejected", {}, now - 1}, extra));
    CHECK(spent({"five_hour", "rejected", {}, 0}, extra));  // for five minutes
    CHECK(spent({"five_hour", "rejected", {}, now + 100}, extra));
    CHECK(spent({"five_hour", "allowed", {}, now + 100, true}, extra) == !extra);
    const claude_openai::usage_window opus{"seven_day_opus", "rejected", {}, now + 100};
    for (const char* model : {"claude-opus-4-8", "opus", "default"})
      CHECK(spent(opus, extra, model));
    for (const char* model : {"claude-sonnet-4-5", "haiku"}) CHECK_FALSE(spent(opus, extra, model));
    CHECK(spent({"five_hour", "rejected", {}, now + 100, true}, extra) == !extra);
  }
}

TEST_CASE(
    "limits of a plan: what was asked before one was used up does not lift it, what was asked "
    "later does") {
  const auto now = claude_openai::now_ms() / 1000;
  const claude_openai::logger log;
  const claude_openai::usage_window allowed{"five_hour", "allowed", 0.9, now + 100};
  for (const bool extra : {false, true}) {
    claude_openai::limit_board board(log);
    board.note({"five_hour", extra ? "allowed" : "rejected", {}, now + 100, extra}, now);
    board.note(allowed, now - 1);
    CHECK(board.find_spent("sonnet", false).has_value());
    CHECK(board.all().at(0).utilization == 0.9);
    board.note(allowed, now + 2);
    CHECK_FALSE(board.find_spent("sonnet", false).has_value());
  }
  claude_openai::limit_board board(log);
  board.note({"five_hour", "allowed", {}, now + 100, true}, now);
  board.note({"five_hour", "rejected", {}, now + 100}, now - 1);  // extra usage is used up, too
  CHECK(board.find_spent("sonnet", true).has_value());
}

TEST_CASE("limits of a plan: one that would bill is found beside one that refuses for longer") {
  const auto now = claude_openai::now_ms() / 1000;
  const claude_openai::logger log;
  claude_openai::limit_board board(log);
  board.note({"five_hour", "allowed", {}, now + 100, true}, now);
  board.note({"seven_day", "rejected", {}, now + 500}, now);
  CHECK(board.find_spent("sonnet", false)->name == "five_hour");
  CHECK(board.find_spent("sonnet", true)->name == "seven_day");
}

TEST_CASE("limits of a plan: a refusal that names no reset lasts until the one that is known") {
  const auto now = claude_openai::now_ms() / 1000;
  const claude_openai::logger log;
  claude_openai::limit_board board(log);
  board.note({"five_hour", "allowed", {}, now + 10'000}, now);
  board.note({"five_hour", "rejected", {}, 0}, now);
  CHECK(board.find_spent("sonnet", true)->resets_at == now + 10'000);
}

TEST_CASE("metrics: whether state is stored is told where there is a store") {
  const auto told = [](std::optional<bool> usable) {
    return metrics().render(gauges{{}, 0, {}, {}, usable});
  };
  CHECK(told({}).find("store_usable") == std::string::npos);
  CHECK(told(true).find("\nclaude_openai_store_usable 1\n") != std::string::npos);
  CHECK(told(false).find("\nclaude_openai_store_usable 0\n") != std::string::npos);
}

TEST_CASE("metrics: labels are escaped, whatever a client calls its model") {
  exposition out;
  out.begin("x", "gauge", "help");
  out.add({{"a", "q\"b\\c\nd"}}, 1.5);
  CHECK(out.text() ==
        "# HELP claude_openai_x help\n# TYPE claude_openai_x gauge\n"
        "claude_openai_x{a=\"q\\\"b\\\\c\\nd\"} 1.5\n");
}

TEST_CASE("metrics: a histogram's buckets hold what is not above their bound") {
  histogram times({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 3.0}) times.add(value);
  exposition out;
  out.begin("t", "histogram", "h");
  times.render(out, {});
  CHECK(value_of(out.text(), R"(claude_openai_t_bucket{le="1"})") == 2);
  CHECK(value_of(out.text(), R"(claude_openai_t_bucket{le="2"})") == 3);
  CHECK(value_of(out.text(), R"(claude_openai_t_bucket{le="+Inf"})") == 4);
  CHECK(value_of(out.text(), "claude_openai_t_count") == 4);
  CHECK(value_of(out.text(), "claude_openai_t_sum") == 6);
}

TEST_CASE(
    "metrics: the cost is what is charged, and never falls where too much was charged ahead") {
  claude_openai::metrics figures;
  const auto cost_after = [&](double charge) {
    auto record = chat("sonnet");
    record.usage.cost_usd.reset();
    record.usage.charge_usd = charge;
    figures.begin();
    figures.finish(record);
    return value_of(figures.render({}), "claude_openai_cost_usd_total");
  };
  CHECK(cost_after(1.0) == doctest::Approx(1.0));
  CHECK(cost_after(-0.25) == doctest::Approx(1.0));
  CHECK(cost_after(0.5) == doctest::Approx(1.25));
}

TEST_CASE("log line: what was asked, by whom, and what it took") {
  const auto line = claude_openai::render_log_line(chat("sonnet"));
  CHECK(line ==
        "req_1 POST /v1/chat/completions 200 800 ms, model sonnet, first token 70 ms, "
        "tokens 15 in 7 out, cost 0.25 USD, process spare, client key-2, from 127.0.0.1");
  auto plain = request_record();
  plain.id = "r";
  plain.method = "GET";
  plain.path = "/health";
  plain.status = 200;
  plain.ended = plain.started;
  plain.address = "unix";
  CHECK(claude_openai::render_log_line(plain) == "r GET /health 200 0 ms, from unix");
}

TEST_CASE("log fields: the same for programs") {
  const auto fields = claude_openai::render_log_fields(chat("sonnet"));
  CHECK(fields["id"] == "req_1");
  CHECK(fields["status"] == 200);
  CHECK(fields["client"] == "key-2");
  CHECK(fields["process"] == "spare");
  CHECK(fields["input_tokens"] == 10);
  CHECK(fields["first_token_seconds"].get<double>() == doctest::Approx(0.07));
  CHECK_FALSE(fields.contains("error"));
}

TEST_CASE("usage windows: what a rate_limit_event and the words of a refusal tell of the limits") {
  const auto read = [](const char* text) {
    return claude_openai::decode_usage_windows(claude_openai::json::parse(text));
  };
  const auto share = read(
      R"({"type":"rate_limit_event","rate_limit_info":{"status":"allowed","resetsAt":1800000000,
          "rateLimitType":"five_hour","utilization":0.42}})");
  REQUIRE(share.size() == 1);
  CHECK(share[0].name == "five_hour");
  CHECK(share[0].status == "allowed");
  CHECK(share[0].resets_at == 1'800'000'000);
  CHECK(share[0].utilization == doctest::Approx(0.42));
  CHECK_FALSE(share[0].extra_usage);
  const auto percent = read(
      R"({"type":"rate_limit_event","rate_limit_info":{"rateLimitType":"seven_day","utilization":42}})");
  REQUIRE(percent.size() == 1);
  CHECK(percent[0].utilization == doctest::Approx(0.42));
  const auto both = read(
      R"({"type":"rate_limit_event","rate_limit_info":{"status":"allowed","rateLimitType":"five_hour",
          "overageInUse":true,"unifiedWindows":{"five_hour":{"utilization":1},
          "seven_day":{"utilization":0.5,"resetsAt":1800000001}}}})");
  REQUIRE(both.size() == 2);
  CHECK(both[0].name == "seven_day");
  CHECK(both[0].resets_at == 1'800'000'001);
  CHECK(both[1].utilization == doctest::Approx(1));
  CHECK(both[1].extra_usage);
  const auto refused = read(
      R"({"type":"assistant","api_error":"usage_limit_reached","api_error_params":{"rate_limit_info":
          {"status":"rejected","rateLimitType":"five_hour"}}})");
  REQUIRE(refused.size() == 1);
  CHECK(refused[0].status == "rejected");
  CHECK(read(R"({"type":"rate_limit_event","rate_limit_info":{}})").empty());
  CHECK(read(R"({"type":"rate_limit_event"})").empty());
  CHECK(read(R"({"type":"result"})").empty());
}
