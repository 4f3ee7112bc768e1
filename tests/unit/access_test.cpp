// [25] guard and [36] doctor: what a client without a key and a web page may do, by whose process
// asks; and what the doctor says is open.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/unit/agents.hpp"

using namespace claude_openai;
using test::error_of;

namespace {

credentials from(peer_user peer, const std::string& key = "", const std::string& origin = "") {
  credentials shown{"127.0.0.1:8000", origin, "", key};
  shown.peer = peer;
  return shown;
}

options with_key() {
  options settings;
  settings.api_keys = {"key-one"};
  return settings;
}

bool may_enter(const credentials& shown, const options& settings, bool needs_key = true) {
  try {
    check_access(shown, settings, needs_key);
    return true;
  } catch (const api_error&) {
    return false;
  }
}

/// Whether one who is let in may use tools, too.
bool may_use_tools(const credentials& shown, const options& settings) {
  return check_access(shown, settings, true).tools_refusal.empty();
}

constexpr auto every_peer = {peer_user::own, peer_user::other, peer_user::unknown};

/// Whether the doctor finds that good.
bool is_good(const options& settings, const std::string& what, const std::string& problem = {}) {
  const auto found = review_security(settings, problem);
  const auto one = std::find_if(found.begin(), found.end(),
                                [&](const finding& each) { return each.what == what; });
  REQUIRE_MESSAGE(one != found.end(), what);
  CHECK_FALSE(one->detail.empty());
  CHECK((one->good || !one->remedy.empty()));
  return one->good;
}

}  // namespace

TEST_CASE("access: without keys another user's process is served nothing but the open routes") {
  const auto error = error_of([] { check_access(from(peer_user::other), {}, true); });
  CHECK(error.kind == error_kind::authentication);
  CHECK(error.message.find("--api-key") != std::string::npos);
  CHECK_FALSE(may_enter(from(peer_user::other, "any-key"), {}));
  CHECK(may_enter(from(peer_user::other), {}, false));
  CHECK(may_enter(from(peer_user::own), {}));
  CHECK(may_enter(from(peer_user::unknown), {}));
}

TEST_CASE("access: by a unix socket another user is another user, too") {
  auto shown = from(peer_user::other);
  shown.local = true;
  CHECK_FALSE(may_enter(shown, {}));
  shown.peer = peer_user::own;
  CHECK(may_enter(shown, {}));
  CHECK(may_use_tools(shown, {}));
}

TEST_CASE("access: with a key it does not matter whose process asks") {
  for (const auto peer : every_peer) {
    CHECK(may_enter(from(peer, "key-one"), with_key()));
    CHECK(may_use_tools(from(peer, "key-one"), with_key()));
    CHECK_FALSE(may_enter(from(peer), with_key()));
    CHECK_FALSE(may_enter(from(peer, "wrong"), with_key()));
    CHECK(may_enter(from(peer), with_key(), false));
  }
}

TEST_CASE(
    "access: without a key tools are for the proxy's own user, unless the operator says more") {
  CHECK(may_use_tools(from(peer_user::own), {}));
  const auto unknown = check_access(from(peer_user::unknown), {}, true);
  CHECK(unknown.tools_refusal.find("--allow-keyless-tools") != std::string::npos);
  CHECK(unknown.tools_refusal.find("--api-key") != std::string::npos);
  options generous;
  generous.allow_keyless_tools = true;
  CHECK(may_use_tools(from(peer_user::unknown), generous));
  CHECK_FALSE(may_enter(from(peer_user::other), generous));
}

TEST_CASE("access: a page of another server on this machine may chat, and not use tools") {
  for (const std::string origin : {"http://127.0.0.1:9000", "http://localhost:8000",
                                   "http://127.0.0.1", "http://[::1]:8000"}) {
    CAPTURE(origin);
    const auto visitor = check_access(from(peer_user::own, "", origin), {}, true);
    CHECK(visitor.tools_refusal.find(origin) != std::string::npos);
    CHECK(visitor.tools_refusal.find("--cors-origin") != std::string::npos);
    CHECK(visitor.page_refusal == visitor.tools_refusal);
    CHECK_FALSE(check_access(from(peer_user::own, "key-one", origin), with_key(), true)
                    .page_refusal.empty());
    CHECK_FALSE(may_use_tools(from(peer_user::own, "key-one", origin), with_key()));
    options generous;
    generous.allow_keyless_tools = true;
    CHECK_FALSE(may_use_tools(from(peer_user::own, "", origin), generous));
  }
}

TEST_CASE("access: the proxy's own page and those of named origins may use tools") {
  const std::string own = "http://127.0.0.1:8000";
  CHECK(may_use_tools(from(peer_user::own, "", own), {}));
  CHECK(check_access(from(peer_user::own, "", own), {}, true).page_refusal.empty());
  CHECK(check_access(from(peer_user::own), {}, true).page_refusal.empty());
  CHECK(may_use_tools(from(peer_user::other, "key-one", own), with_key()));
  auto named = with_key();
  named.cors_origins = {"https://app.example.com", "http://localhost:3000"};
  for (const auto& origin : named.cors_origins) {
    CHECK(may_use_tools(from(peer_user::unknown, "key-one", origin), named));
  }
  CHECK_FALSE(may_use_tools(from(peer_user::own, "key-one", "http://localhost:3001"), named));
  named.cors_origins = {"*"};
  CHECK(may_use_tools(from(peer_user::own, "key-one", "https://any.example"), named));
}

TEST_CASE("access: a page is no more than its user: without a key it needs the proxy's own") {
  options named;
  named.cors_origins = {"https://app.example.com"};
  CHECK(may_use_tools(from(peer_user::own, "", "https://app.example.com"), named));
  CHECK_FALSE(may_use_tools(from(peer_user::unknown, "", "https://app.example.com"), named));
  CHECK_FALSE(may_enter(from(peer_user::other, "", "https://app.example.com"), named));
}

TEST_CASE("options: all web pages are let in only with a client key") {
  options settings;
  settings.cors_origins = {"*"};
  const auto problems = validate(settings);
  REQUIRE(problems.size() == 1);
  CHECK(problems[0].find("--api-key") != std::string::npos);
  settings.cors_origins = {"https://app.example.com", "*"};
  CHECK(validate(settings).size() == 1);
  settings.api_keys = {"key-one"};
  CHECK(validate(settings).empty());
  options named;
  named.cors_origins = {"https://app.example.com"};
  CHECK(validate(named).empty());
}

TEST_CASE("options: what agents may do is careful unless the operator says otherwise") {
  const options settings;
  CHECK(settings.permission_mode == "default");
  CHECK(settings.sandbox == sandbox_use::automatic);
  CHECK_FALSE(settings.sandbox_network);
  CHECK_FALSE(settings.allow_mcp_registration);
  CHECK_FALSE(settings.allow_keyless_tools);
}

TEST_CASE("doctor: each setting that opens the proxy is told, with what would close it") {
  struct opening {
    std::string what;
    std::function<void(options&)> open;
  };
  const std::vector<opening> openings = {
      {"who can connect", [](options& one) { one.host = "0.0.0.0"; }},
      {"encryption", [](options& one) { one.host = "192.0.2.1"; }},
      {"web pages", [](options& one) { one.cors_origins = {"*"}; }},
      {"confinement", [](options& one) { one.sandbox = sandbox_use::off; }},
      {"agents' directories", [](options& one) { one.agent_directories = {"/"}; }},
      {"agents' directories", [](options& one) { one.agent_roots = {"/home"}; }},
      {"agents' directories", [](options& one) { one.working_directory = "/home/me"; }},
      {"network of commands", [](options& one) { one.sandbox_network = true; }},
      {"tools without a key", [](options& one) { one.allow_keyless_tools = true; }},
      {"permission mode", [](options& one) { one.permission_mode = "bypassPermissions"; }},
      {"MCP servers", [](options& one) { one.allow_mcp_registration = true; }},
      {"log", [](options& one) { one.log_bodies = true; }}};
  options closed = with_key();
  closed.environment["HOME"] = "/home/me";
  closed.agent_directories = {"/home/me/project"};
  for (const auto& each : openings) {
    CAPTURE(each.what);
    CHECK(is_good(closed, each.what));
    auto opened = closed;
    each.open(opened);
    CHECK_FALSE(is_good(opened, each.what));
  }
}

TEST_CASE("doctor: commands that cannot be confined are told, unless there are no agents then") {
  options settings;
  CHECK(is_good(settings, "confinement"));
  CHECK_FALSE(is_good(settings, "confinement", "bubblewrap is not installed"));
  settings.sandbox = sandbox_use::on;
  CHECK(is_good(settings, "confinement", "bubblewrap is not installed"));
}

TEST_CASE("doctor: where tools are lent to nobody, none of their settings is a finding") {
  options settings = with_key();
  settings.builtin_tools = false;
  settings.allow_keyless_tools = true;
  settings.permission_mode = "bypassPermissions";
  settings.allow_mcp_registration = true;
  for (const auto& found : review_security(settings)) {
    CAPTURE(found.what);
    CHECK(found.good);
  }
}

TEST_CASE("doctor: a review tells no key") {
  const options settings = with_key();
  for (const auto& found : review_security(settings)) {
    CHECK(found.detail.find("key-one") == std::string::npos);
  }
}
