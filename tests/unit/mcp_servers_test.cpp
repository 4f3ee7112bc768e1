// [23] agents: what one client sets is nobody else's, whatever it sets is bounded, and it ends with
// its session or its key.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/unit/agents.hpp"

using namespace claude_openai;
using namespace agents_test;
using test::error_of;
using tree = test::json;

namespace {

mcp_server named(const std::string& name, const std::string& command = "c") {
  return server_of(R"({"name":")" + name + R"(","command":")" + command + R"("})");
}

error_kind refused_name(fixture& given, const std::string& name) {
  return error_of([&] { given.agents().add_server("me", named(name)); }).kind;
}

/// With an operator's server of that name, which greets and has no tools.
struct with_operators_server : fixture {
  explicit with_operators_server(const std::string& name = "files") {
    const auto script =
        shell_server(scratch, answers("initialize", R"({"capabilities":{"tools":{}}})") +
                                  answers("tools/list", R"({"tools":[{},{}]})"));
    const tree config{
        {"mcpServers", {{name, {{"command", script}, {"args", {"--token=secret"}}}}}}};
    settings.environment["PATH"] = "/usr/bin:/bin";
    settings.sandbox = sandbox_use::off;
    settings.mcp_config = scratch.write("servers.json", config.dump());
  }
};

}  // namespace

// ---- one client's, and nobody else's -----------------------------------------------------------

TEST_CASE("MCP servers: what one client does with an operator's server, another does not see") {
  with_operators_server given;
  auto& agents = given.agents();
  const wake_signal never;
  CHECK(agents.connect("me", "files", never).tools == 2);
  CHECK(agents.servers("me")[0].connected);
  CHECK_FALSE(agents.servers("another")[0].connected);
  CHECK(agents.servers("another")[0].tools == 0);
  agents.disconnect("me", "files");
  CHECK(given.settled({}, "me").mcp_config.empty());
  CHECK_FALSE(given.settled({}, "another").mcp_config.empty());
  CHECK_FALSE(given.settled({}, "later").mcp_config.empty());
  CHECK(agents.connect("me", "files", never).enabled);
  CHECK_FALSE(given.settled({}, "me").mcp_config.empty());
}

TEST_CASE("MCP servers: the operator's command lines are told to no client") {
  with_operators_server given;
  const auto told = tree::parse(render_mcp_servers(given.agents().servers("me")).dump());
  REQUIRE(told["total"] == 1);
  CHECK(told["servers"][0]["name"] == "files");
  CHECK(told["servers"][0]["command"] == "");
  CHECK(told["servers"][0]["args"] == tree::array());
  CHECK(told.dump().find("secret") == std::string::npos);
  CHECK(told.dump().find("server.sh") == std::string::npos);
}

TEST_CASE(
    "MCP servers: nobody registers any unless the operator allows it, nor where no tools are "
    "lent") {
  fixture closed;
  closed.settings.allow_mcp_registration = false;
  const auto error = error_of([&] { closed.agents().add_server("me", named("own")); });
  CHECK(error.kind == error_kind::permission);
  CHECK(error.message.find("--allow-mcp-registration") != std::string::npos);
  CHECK(closed.agents().servers("me").empty());
  fixture chats_only;
  chats_only.settings.builtin_tools = false;
  auto& agents = chats_only.agents();
  const wake_signal never;
  for (const auto& kind : {error_of([&] { agents.add_server("me", named("own")); }).kind,
                           error_of([&] { agents.connect("me", "own", never); }).kind,
                           error_of([&] { agents.disconnect("me", "own"); }).kind}) {
    CHECK(kind == error_kind::permission);
  }
}

TEST_CASE("MCP servers: the operator's list of tools bounds those that clients register") {
  fixture given;
  given.settings.allowed_tools = {"Read", "mcp__good"};
  CHECK(refused_name(given, "own") == error_kind::permission);
  REQUIRE_NOTHROW(given.agents().add_server("me", named("good")));
  CHECK(given.settled().tools == strings{"Read", "mcp__good"});
  CHECK(given.settled(asking_tools("mcp__good__say")).tools == strings{"mcp__good__say"});
}

TEST_CASE(
    "MCP servers: no two have the same tools' names, and none has those of the client's tools") {
  with_operators_server given("op_x");
  auto& agents = given.agents();
  CHECK(refused_name(given, "op.x") == error_kind::permission);
  CHECK(refused_name(given, "op_x") == error_kind::permission);
  CHECK(refused_name(given, "client") == error_kind::permission);
  REQUIRE_NOTHROW(agents.add_server("me", named("a.b")));
  CHECK(refused_name(given, "a_b") == error_kind::permission);
  REQUIRE_NOTHROW(agents.add_server("me", named("a.b", "new")));
  REQUIRE_NOTHROW(agents.add_server("another", named("a_b")));
  CHECK(names_of(agents.servers("me")) == strings{"op_x", "a.b"});
  CHECK(agents.servers("me")[1].config["command"] == "new");
}

TEST_CASE("MCP servers: a name is no field of an object in JavaScript") {
  fixture given;
  for (const std::string name : {"__proto__", "_x", "-x", ".x"}) {
    CAPTURE(name);
    CHECK(error_of([&] { named(name); }).param == "name");
  }
}

// ---- bounds ------------------------------------------------------------------------------------

TEST_CASE(
    "MCP servers: all that one client registers takes 32 KiB, replaced and described or not") {
  fixture given;
  auto& agents = given.agents();
  const auto sized = [](const std::string& name, const std::string& field, std::size_t size) {
    const auto value = field == "args" ? "[\"" + std::string(size, 'x') + "\"]"
                                       : "\"" + std::string(size, 'x') + "\"";
    return server_of(R"({"name":")" + name + R"(","command":"c",")" + field + "\":" + value + "}");
  };
  const auto refused = [&](const mcp_server& server) {
    const auto error = error_of([&] { agents.add_server("me", server); });
    return error.kind == error_kind::invalid_request && error.param == "name";
  };
  for (const std::string field : {"args", "description"}) {
    CHECK(refused(sized("big", field, 40'000)));
    REQUIRE_NOTHROW(agents.add_server("me", sized(field, field, 10'000)));
    CHECK(refused(sized(field, field, 40'000)));
    REQUIRE_NOTHROW(agents.add_server("me", sized(field, field, 11'000)));
  }
  CHECK(refused(sized("third", "args", 11'000)));
  CHECK(names_of(agents.servers("me")) == strings{"args", "description"});
  REQUIRE_NOTHROW(agents.add_server("another", sized("own", "args", 20'000)));
}

TEST_CASE("tool configuration: names that are told twice are kept once") {
  fixture given;
  const strings many(300'000, "Read");
  const auto kept = given.agents().configure("me", "", many, many);
  CHECK(kept.allowed == strings{"Read"});
  CHECK(kept.disallowed == strings{"Read"});
}

TEST_CASE("tool configuration: of a client's sessions the latest thousand are kept, and its own") {
  fixture given;
  auto& agents = given.agents();
  agents.configure("me", "", strings{"Read"}, strings{});
  agents.configure("another", "s", strings{"Bash"}, strings{});
  for (int i = 0; i < 1'500; ++i) {
    agents.configure("me", "s" + std::to_string(i), strings{"Glob"}, std::nullopt);
  }
  CHECK(agents.session_configurations("me") <= 1'000);
  CHECK(agents.session_configurations("me") > 900);
  CHECK(agents.configuration("me", "s1499").effective() == strings{"Glob"});
  CHECK(agents.configuration("me", "s0").effective() == strings{"Read"});
  CHECK(agents.configuration("me", "").effective() == strings{"Read"});
  CHECK(agents.configuration("another", "s").effective() == strings{"Bash"});
}

TEST_CASE("tool configuration: a session's ends with its session, the client's does not") {
  fixture given;
  given.settings.session_ttl = {};
  auto& agents = given.agents();
  agents.configure("me", "", strings{"Read"}, strings{});
  agents.configure("me", "s", strings{"Glob"}, std::nullopt);
  CHECK(agents.session_configurations("me") == 0);
  CHECK(agents.configuration("me", "s").effective() == strings{"Read"});
}

TEST_CASE("agents: nothing is left of what a client has set whose key is no longer valid") {
  fixture given;
  auto& agents = given.agents();
  for (const std::string client : {"me", "gone", "another"}) {
    agents.configure(client, "", strings{"Read"}, strings{});
    agents.configure(client, "s", strings{"Glob"}, std::nullopt);
    agents.add_server(client, named("own"));
  }
  agents.forget({"gone", "another", "nobody"});
  for (const std::string client : {"gone", "another"}) {
    CHECK(agents.servers(client).empty());
    CHECK(agents.session_configurations(client) == 0);
    CHECK(agents.configuration(client, "").effective().size() == 6);
  }
  CHECK(names_of(agents.servers("me")) == strings{"own"});
  CHECK(agents.configuration("me", "s").effective() == strings{"Glob"});
  CHECK(agents.configuration("me", "").effective() == strings{"Read"});
}
