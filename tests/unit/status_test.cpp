// [28] status: what is known of the CLI and its login.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;

namespace {

cli_facts facts_of(const std::string& initialize_response) {
  cli_facts facts;
  read_initialize_response(json::parse(initialize_response), facts);
  return facts;
}

strings missing(auth_method method, const environment_map& environment) {
  options settings;
  settings.auth = method;
  settings.environment = environment;
  return missing_credentials(settings);
}

}  // namespace

TEST_CASE("version: versions are ordered by number, not by letter") {
  CHECK(parse_version("2.1.119").value() < oldest_cli);
  CHECK(parse_version("2.1.99").value() < oldest_cli);
  CHECK(parse_version("2.0.999").value() < oldest_cli);
  CHECK(parse_version("1.9.999").value() < oldest_cli);
  CHECK(parse_version("2.1.120").value() >= oldest_cli);
  CHECK(parse_version("2.2.0").value() >= oldest_cli);
  CHECK(parse_version("10.0.0").value() >= oldest_cli);
}

TEST_CASE("health: degraded where nothing works, and where requests wait and nothing moves") {
  process_counts counts;
  cli_facts facts;
  counts.queued = 3;
  counts.stalled = std::chrono::seconds(30);
  auto health = render_health(counts, facts, true);
  CHECK(health["status"] == "healthy");
  CHECK(health["queued"] == 3);
  CHECK_FALSE(health.contains("problem"));
  counts.stalled = std::chrono::seconds(31);
  health = render_health(counts, facts, true);
  CHECK(health["status"] == "degraded");
  CHECK(health["problem"] == "3 requests wait, and none has got a process for 31 s");
  facts.problem = "no claude";
  CHECK(render_health(counts, facts, true)["problem"] == "no claude");
  counts.stalled = std::chrono::seconds(0);
  CHECK(render_health(counts, facts, true)["status"] == "degraded");
}

TEST_CASE("health and status: where another program answers than the operator's, both say so") {
  options settings;
  cli_facts facts;
  const auto config = [&] {
    return render_auth_status(settings, facts)["claude_code_auth"]["status"]["config"];
  };
  CHECK_FALSE(config().contains("warning"));
  facts.warning = "/bin/claude has changed and does not work";
  CHECK(config()["warning"] == facts.warning);
  CHECK(render_health({}, facts, true)["warning"] == facts.warning);
  CHECK(render_health({}, facts, true)["status"] == "healthy");
  CHECK_FALSE(render_health({}, facts, false).contains("warning"));
}

TEST_CASE("health: processes are told by what they do") {
  process_counts counts;
  counts.spare = 3;
  counts.warm = 2;
  counts.busy = 4;
  counts.idle = 10;
  counts.parked = 2;
  counts.rewinding = 1;
  counts.stopping = 5;
  counts.maximum = 32;
  CHECK(dump(render_health(counts, {}, true)["processes"]) ==
        R"({"spare":3,"warm":2,"busy":4,"idle":10,"rewinding":1,"stopping":5,"maximum":32})");
}

TEST_CASE("health: a stranger is told whether all is well, or a word of what is not") {
  process_counts counts;
  cli_facts facts;
  CHECK(render_health(counts, facts, false) ==
        json::object({{"status", "healthy"}, {"service", "claude-openai"}}));
  const auto told = [&] { return render_health(counts, facts, false); };
  const auto degraded = [](const char* code) {
    return json::object({{"status", "degraded"}, {"service", "claude-openai"}, {"code", code}});
  };
  counts.stalled = std::chrono::seconds(31);
  CHECK(told() == degraded("no_free_process"));
  facts.problem = "/home/somebody/bin/claude cannot be started";
  CHECK(told() == degraded("claude_not_usable"));
  facts.version = "2.1.330";
  CHECK(told() == degraded("claude_failed"));
  facts.logged_in = false;
  CHECK(told() == degraded("not_logged_in"));
  facts.too_old = true;
  CHECK(told() == degraded("claude_too_old"));
  CHECK(render_health(counts, facts, true)["problem"] == facts.problem);
}

TEST_CASE("health: degraded while the store cannot be used, of which a stranger gets the code") {
  const auto told = [](bool details, const std::optional<std::string>& store,
                       const cli_facts& facts = {}) {
    return render_health({}, facts, details, false, store);
  };
  CHECK_FALSE(told(true, {}).contains("store"));
  CHECK(told(true, "")["status"] == "healthy");
  CHECK(told(true, "")["store"] == "ok");
  const auto health = told(true, "disk is full");
  CHECK(health["status"] == "degraded");
  CHECK(health["code"] == "store_unavailable");
  CHECK(health["store"] == "unusable");
  CHECK(health["problem"] == "the store cannot be used: disk is full");
  CHECK(told(false, "disk is full") ==
        json::object(
            {{"status", "degraded"}, {"service", "claude-openai"}, {"code", "store_unavailable"}}));
  cli_facts facts;
  facts.problem = "no claude";  // worse: no request is answered
  CHECK(told(true, "disk is full", facts)["problem"] == "no claude");
  CHECK(told(true, "disk is full", facts)["code"] == "claude_not_usable");
  CHECK(told(true, "disk is full", facts)["store"] == "unusable");
}

TEST_CASE("login: a key, a token or a cloud is a login, nothing is none") {
  CHECK(facts_of(R"({"account":{"tokenSource":"none","apiProvider":"firstParty"}})").logged_in ==
        false);
  CHECK(facts_of(R"({"account":{"tokenSource":"none","apiKeySource":"ANTHROPIC_API_KEY",
                                "apiProvider":"firstParty"}})")
            .logged_in == true);
  CHECK(facts_of(R"({"account":{"tokenSource":"claude.ai"}})").logged_in == true);
  CHECK(facts_of(R"({"account":{"tokenSource":"none","apiProvider":"bedrock"}})").logged_in ==
        true);
  CHECK(facts_of(R"({"account":{"apiProvider":"vertex"}})").logged_in == true);
  CHECK(facts_of(R"({"account":{}})").logged_in == false);
  CHECK(facts_of("{}").logged_in == false);
}

TEST_CASE("models: ids and aliases that the CLI reports are listed, `default` is not") {
  CHECK(facts_of(R"({"models":[{"value":"default","resolvedModel":"claude-a"},
                               {"value":"opus"},
                               {"value":"haiku","resolvedModel":"claude-b"}]})")
            .models == strings{"claude-a", "opus", "haiku", "claude-b"});
}

TEST_CASE("models: an odd report does no harm") {
  for (const std::string text : {"null", "[]", R"({"models":null})", R"({"models":{}})",
                                 R"({"models":[null,1,"x",{},{"value":7},{"value":""}]})"}) {
    CAPTURE(text);
    CHECK(facts_of(text).models.empty());
  }
}

TEST_CASE("credentials: each method says what it lacks, and is silent when it has it") {
  CHECK(missing(auth_method::cli, {}).empty());
  CHECK(missing(auth_method::api_key, {}).size() == 1);
  CHECK(missing(auth_method::api_key, {{"ANTHROPIC_API_KEY", ""}}).size() == 1);
  CHECK(missing(auth_method::api_key, {{"ANTHROPIC_API_KEY", "k"}}).empty());
  CHECK(missing(auth_method::api_key, {{"ANTHROPIC_AUTH_TOKEN", "k"}}).empty());
  CHECK(missing(auth_method::bedrock, {}).size() == 1);
  CHECK(missing(auth_method::bedrock, {{"AWS_REGION", "r"}}).empty());
  CHECK(missing(auth_method::bedrock, {{"AWS_DEFAULT_REGION", "r"}}).empty());
  CHECK(missing(auth_method::vertex, {}).size() == 2);
  CHECK(missing(auth_method::vertex, {{"CLOUD_ML_REGION", "r"}}).size() == 1);
  CHECK(
      missing(auth_method::vertex, {{"CLOUD_ML_REGION", "r"}, {"ANTHROPIC_VERTEX_PROJECT_ID", "p"}})
          .empty());
  CHECK(missing(auth_method::api_key, {})[0].find("ANTHROPIC_API_KEY") != std::string::npos);
}

TEST_CASE("credentials: no secret is in what is said of them") {
  for (const auto method : {auth_method::api_key, auth_method::bedrock, auth_method::vertex}) {
    for (const auto& sentence : missing(method, {{"AWS_SECRET_ACCESS_KEY", "hunter2"}})) {
      CHECK(sentence.find("hunter2") == std::string::npos);
    }
  }
}

TEST_CASE("status board: what was set last is what is told") {
  status_board board;
  CHECK(board.get().version.empty());
  CHECK_FALSE(board.get().logged_in);
  CHECK_FALSE(board.get().too_old);
  cli_facts facts;
  facts.version = "2.1.330";
  facts.logged_in = true;
  facts.models = {"a"};
  board.set(facts);
  CHECK(board.get().version == "2.1.330");
  CHECK(board.get().logged_in == true);
  CHECK(board.get().models == strings{"a"});
}
