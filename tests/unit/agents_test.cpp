// [23] agents: what Claude Code's own tools may do, and which MCP servers they have; and what the
// compatibility report says of a chat request [10].
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include "tests/dialects.hpp"
#include "tests/unit/agents.hpp"

using namespace claude_openai;
using namespace agents_test;
using test::error_of;
namespace files = std::filesystem;
using tree = test::json;  // compares without regard to the order of members

namespace {

tree plain(const claude_openai::json& value) { return tree::parse(value.dump()); }

bool holds(const strings& all, const std::string& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

const strings default_tools = {"Bash", "Edit", "Glob", "Grep", "Read", "Write"};
const strings default_disallowed = {"Task", "WebFetch", "WebSearch"};

}  // namespace

// ---- what an agent may do ----------------------------------------------------------------------

TEST_CASE(
    "agents: one that asks for nothing has the usual tools, ten turns, a place and no servers") {
  fixture given;
  const auto agent = given.settled();
  CHECK(agent.tools == default_tools);
  CHECK(agent.disallowed == default_disallowed);
  CHECK(agent.permission_mode == "default");
  CHECK(agent.max_turns == 10);
  CHECK(agent.private_directory == given.scratch / "agents/me");
  CHECK(agent.directory == given.scratch / "agents/me/work");
  CHECK(agent.mcp_config.empty());
  CHECK_FALSE(agent.show_activity);
}

TEST_CASE("agents: where the operator lends no tools, nobody has them") {
  fixture given;
  given.settings.builtin_tools = false;
  const auto error = error_of([&] { given.settled(); });
  CHECK(error.kind == error_kind::permission);
  CHECK(error.message.find("--no-builtin-tools") != std::string::npos);
}

TEST_CASE("agents: a client names its tools, in its own order, with rules and commas") {
  fixture given;
  CHECK(given.settled(asking_tools("Read")).tools == strings{"Read"});
  CHECK(given.settled(asking_tools(" Write , ,Read,, ")).tools == strings{"Write", "Read"});
  CHECK(given.settled(asking_tools("Bash(git log:*), Read(a, b/**),Bash(f x, y:*)")).tools ==
        strings{"Bash(git log:*)", "Read(a, b/**)", "Bash(f x, y:*)"});
  CHECK(given.settled(asking_tools("")).tools.empty());
  for (const auto& tool : known_tools) {
    const std::string name(tool.name);
    if (holds(default_disallowed, name)) continue;
    CHECK(given.settled(asking_tools(name)).tools == strings{name});
  }
}

TEST_CASE("agents: what is no tool's name is a 400, a tool that nobody knows a 403") {
  fixture given;
  for (const std::string wrong :
       {"Read;Bash", "Bash(ls", "(ls)", "Bash)", "Read Bash", "$(x)", "Bäsh", "Bash(ls)x"}) {
    CAPTURE(wrong);
    for (const bool allowed : {true, false}) {
      const auto error =
          error_of([&] { given.settled(allowed ? asking_tools(wrong) : asking_not(wrong)); });
      CHECK(error.kind == error_kind::invalid_request);
      CHECK(error.param == (allowed ? "X-Claude-Allowed-Tools" : "X-Claude-Disallowed-Tools"));
    }
  }
  for (const std::string unknown : {"Rocket", "read", "*", "mcp__files", "Bash*", "Rocket(x)"}) {
    CAPTURE(unknown);
    CHECK(given.refused(asking_tools("Read," + unknown)) == error_kind::permission);
  }
}

TEST_CASE("agents: what looks like a flag of the CLI's is no tool") {
  fixture given;
  given.agents().configure("me", "", std::nullopt, strings{});
  for (const std::string flag : {"--dangerously-skip-permissions", "-p"}) {
    CAPTURE(flag);
    CHECK(given.refused(asking_tools(flag)) == error_kind::invalid_request);
    CHECK(given.refused(asking_not(flag)) == error_kind::invalid_request);
  }
}

TEST_CASE("agents: a client may forbid itself tools and rules") {
  fixture given;
  const auto agent = given.settled(asking_not("Bash,Read(/etc/**)"));
  CHECK(agent.tools == strings{"Edit", "Glob", "Grep", "Read", "Write"});
  CHECK(agent.disallowed == strings{"Task", "WebFetch", "WebSearch", "Bash", "Read(/etc/**)"});
  agent_headers both = asking_tools("Bash(git:*),Read");
  both.disallowed_tools = "Read";
  CHECK(given.settled(both).tools == strings{"Bash(git:*)"});
}

TEST_CASE("agents: the operator's tools are the most that a client gets") {
  fixture given;
  given.settings.allowed_tools = {"Read", "Bash(git:*)", "WebFetch"};
  CHECK(given.settled().tools == strings{"Read"});
  CHECK(given.settled(asking_tools("Read(a),Bash(git:*)")).tools ==
        strings{"Read(a)", "Bash(git:*)"});
  for (const std::string more : {"Bash", "Bash(rm:*)", "Write", "Edit(a)"}) {
    CAPTURE(more);
    CHECK(given.refused(asking_tools(more)) == error_kind::permission);
  }
}

TEST_CASE("agents: what the operator forbids is forbidden to all, first of all") {
  fixture given;
  given.settings.disallowed_tools = {"Bash(rm:*)", "Write"};
  const auto agent = given.settled();
  CHECK(agent.tools == strings{"Bash", "Edit", "Glob", "Grep", "Read"});
  CHECK(agent.disallowed == strings{"Bash(rm:*)", "Write", "Task", "WebFetch", "WebSearch"});
  CHECK_FALSE(holds(given.settled(asking_tools("Write,Read")).tools, "Write"));
  CHECK(holds(given.settled(asking_not("Read")).disallowed, "Bash(rm:*)"));
}

TEST_CASE("agents: a permission mode is one of five, and none above the operator's") {
  for (std::size_t most = 0; most < permission_modes.size(); ++most) {
    fixture given;
    given.settings.sandbox = sandbox_use::off;
    given.settings.permission_mode = permission_modes[most];
    CAPTURE(given.settings.permission_mode);
    for (std::size_t rank = 0; rank < permission_modes.size(); ++rank) {
      const std::string mode(permission_modes[rank]);
      CAPTURE(mode);
      if (rank > most) {
        CHECK(given.refused(asking_mode(mode)) == error_kind::permission);
      } else {
        const bool as_root = mode == "bypassPermissions" && ::geteuid() == 0;
        CHECK(given.settled(asking_mode(mode)).permission_mode == (as_root ? "acceptEdits" : mode));
      }
    }
    const bool careful = most < *rank_of_mode("default");
    CHECK(given.settled().permission_mode ==
          (careful ? given.settings.permission_mode : "default"));
    const auto error = error_of([&] { given.settled(asking_mode("bogus")); });
    CHECK(error.kind == error_kind::invalid_request);
    CHECK(error.param == "X-Claude-Permission-Mode");
  }
}

TEST_CASE("agents: neither root nor who is confined can do without permissions, and is told so") {
  for (const auto sandbox : {sandbox_use::off, sandbox_use::automatic}) {
    fixture given;
    given.settings.sandbox = sandbox;
    given.settings.permission_mode = "bypassPermissions";
    auto made = given.request();
    given.agents().authorize(made, asking_mode("bypassPermissions"));
    const bool lowered = ::geteuid() == 0 || sandbox == sandbox_use::automatic;
    CHECK(made.ignored_params == (lowered ? strings{"X-Claude-Permission-Mode"} : strings{}));
    CHECK(made.agent->permission_mode == (lowered ? "acceptEdits" : "bypassPermissions"));
    auto less = given.request();
    given.agents().authorize(less, asking_mode("acceptEdits"));
    CHECK(less.ignored_params.empty());
  }
}

TEST_CASE("agents: turns are a number up to a thousand, or none for no limit") {
  fixture given;
  CHECK(given.settled(asking_turns("1")).max_turns == 1);
  CHECK(given.settled(asking_turns(" 1000 ")).max_turns == 1000);
  CHECK(given.settled(asking_turns("0")).max_turns == 0);
  for (const std::string wrong : {"", "-1", "1001", "ten", "1.5", "99999999999999999999"}) {
    CAPTURE(wrong);
    const auto error = error_of([&] { given.settled(asking_turns(wrong)); });
    CHECK(error.kind == error_kind::invalid_request);
    CHECK(error.param == "X-Claude-Max-Turns");
  }
}

TEST_CASE("agents: no more turns than the operator's, asked for or not") {
  fixture given;
  given.settings.max_turns = 5;
  CHECK(given.settled().max_turns == 5);
  CHECK(given.settled(asking_turns("5")).max_turns == 5);
  CHECK(given.refused(asking_turns("6")) == error_kind::permission);
  CHECK(given.refused(asking_turns("0")) == error_kind::permission);
  fixture generous;
  generous.settings.max_turns = 50;
  CHECK(generous.settled().max_turns == 10);
  CHECK(generous.settled(asking_turns("50")).max_turns == 50);
}

TEST_CASE("agents: a directory is an allowed one or below it, links followed") {
  const folder root;
  files::create_directories(root / "in/deep/er");
  files::create_directories(root / "inside");
  files::create_directories(root / "out");
  files::create_directory_symlink(root / "out", root / "in/leaves");
  files::create_directory_symlink(root / "in/deep", root / "comes");
  fixture given;
  given.settings.agent_roots = {root / "no-such", root / "in"};
  const auto directory = [&](const std::string& path) {
    return given.settled(asking_directory(path)).directory;
  };
  CHECK(directory(root / "in") == root / "in");
  CHECK(directory(root / "in/") == root / "in");
  CHECK(directory(root / "in/deep/er") == root / "in/deep/er");
  CHECK(directory(root / "in/deep/../deep") == root / "in/deep");
  CHECK(directory(root / "comes/er") == root / "in/deep/er");
  for (const std::string outside :
       {"", "out", "inside", "in/..", "in/leaves", "in/deep/../../out"}) {
    CAPTURE(outside);
    CHECK(given.refused(asking_directory(root / outside)) == error_kind::permission);
  }
  CHECK(given.refused(asking_directory("/")) == error_kind::permission);
}

TEST_CASE("agents: a root may be a link, and may end with a slash") {
  const folder root;
  files::create_directories(root / "real/deep");
  files::create_directory_symlink(root / "real", root / "link");
  fixture given;
  given.settings.agent_roots = {root / "link/"};
  CHECK(given.settled(asking_directory(root / "real/deep")).directory == root / "real/deep");
}

TEST_CASE("agents: what is no directory is refused as one that is not allowed, word for word") {
  const folder root;
  root.write("file", "x");
  fixture given;
  given.settings.agent_roots = {root.path()};
  const auto forbidden = error_of([&] { given.settled(asking_directory("/usr")); });
  CHECK(forbidden.kind == error_kind::permission);
  CHECK(forbidden.message.find("X-Claude-Cwd") == 0);
  for (const auto& path :
       {root / "nothing", root / "file", std::string(), std::string("/no/such/place")}) {
    CAPTURE(path);
    const auto error = error_of([&] { given.settled(asking_directory(path)); });
    CHECK(error.kind == forbidden.kind);
    CHECK(error.message == forbidden.message);
  }
  fixture closed;
  CHECK(closed.refused(asking_directory(root.path())) == error_kind::permission);
}

// ---- configurations ----------------------------------------------------------------------------

TEST_CASE("tool configuration: a client's own, changed field by field, and used by its agents") {
  fixture given;
  auto& agents = given.agents();
  CHECK(agents.configuration("me", "").effective() == default_tools);
  const auto changed = agents.configure("me", "", strings{"Write", "Read", "Task"}, std::nullopt);
  CHECK(changed.disallowed == default_disallowed);
  CHECK(changed.effective() == strings{"Read", "Write"});
  CHECK(given.settled().tools == strings{"Read", "Write"});
  CHECK(agents.configure("me", "", std::nullopt, strings{"Read"}).effective() ==
        strings{"Task", "Write"});
  CHECK(given.settled().disallowed == strings{"Read"});
  CHECK(agents.configure("me", "", strings{}, std::nullopt).effective().empty());
  CHECK(given.settled({}, "another").tools == default_tools);
  CHECK(agents.configuration("another", "").effective() == default_tools);
}

TEST_CASE(
    "tool configuration: the effective tools that are shown are those that the operator lends") {
  fixture given;
  CHECK(given.agents().configuration("me", "").lent == default_tools);
  given.settings.allowed_tools = {"Read", "Bash(git:*)", "Grep"};
  given.settings.disallowed_tools = {"Grep"};
  CHECK(given.agents().configuration("me", "").lent == strings{"Read"});
  given.settings.builtin_tools = false;
  CHECK(given.agents().configuration("me", "").lent.empty());
}

TEST_CASE("tool configuration: a session's own begins with the client's and stays its own") {
  fixture given;
  auto& agents = given.agents();
  agents.configure("me", "", strings{"Read", "Bash"}, strings{});
  CHECK(agents.configuration("me", "s").effective() == strings{"Bash", "Read"});
  const auto fresh = agents.configure("me", "s", std::nullopt, strings{"Bash"});
  CHECK(fresh.effective() == strings{"Read"});
  CHECK(given.settled({}, "me", "s").tools == strings{"Read"});
  CHECK(given.settled({}, "me", "t").tools == strings{"Bash", "Read"});
  CHECK(given.settled().tools == strings{"Bash", "Read"});
  agents.configure("me", "", strings{"Write"}, std::nullopt);
  CHECK(given.settled({}, "me", "s").tools == strings{"Read"});
  CHECK(given.settled({}, "another", "s").tools == default_tools);
  agents.configure("me", "t", strings{}, std::nullopt);
  CHECK(agents.session_configurations("me") == 2);
  CHECK(agents.session_configurations("another") == 0);
}

TEST_CASE("tool configuration: a name that no tool has is refused, and changes nothing") {
  fixture given;
  auto& agents = given.agents();
  for (const bool allowed : {true, false}) {
    const strings names = {"Read", "Rocket", "bash"};
    const auto error = error_of([&] {
      agents.configure("me", "", allowed ? std::optional(names) : std::nullopt,
                       allowed ? std::nullopt : std::optional(names));
    });
    CHECK(error.kind == error_kind::invalid_request);
    CHECK(error.message.find("Invalid tool names: Rocket, bash. Valid tools: Task, Bash, ") == 0);
  }
  CHECK(agents.configuration("me", "").effective() == default_tools);
}

TEST_CASE("tool configuration: it is told with its times") {
  fixture given;
  using namespace std::chrono;
  tool_configuration kept;
  kept.disallowed = {"Bash"};
  kept.created = system_clock::time_point(seconds(0));
  kept.updated = system_clock::time_point(seconds(1));
  const auto told = plain(render_configuration(kept));
  CHECK(told["allowed_tools"] == tree::array());
  CHECK(told["disallowed_tools"] == tree{"Bash"});
  CHECK(told["created_at"] == "1970-01-01T00:00:00.000Z");
  CHECK(told["updated_at"] == "1970-01-01T00:00:01.000Z");
  kept.allowed = strings{"Read"};
  CHECK(plain(render_configuration(kept))["allowed_tools"] == tree{"Read"});
  const auto before = given.agents().configure("me", "", strings{"Read"}, std::nullopt);
  const auto after = given.agents().configure("me", "", strings{"Bash"}, std::nullopt);
  CHECK(after.created == before.created);
  CHECK(after.updated >= before.updated);
}

TEST_CASE("tools: the list and its counts have the reference's shape") {
  const auto told = plain(render_known_tools());
  CHECK(told["total"] == 15);
  REQUIRE(told["tools"].size() == 15);
  CHECK(told["tools"][1] == tree{{"name", "Bash"},
                                 {"description", "Runs a shell command"},
                                 {"category", "system"},
                                 {"parameters", {{"command", "command"}, {"timeout", "timeout"}}},
                                 {"examples", tree::array()},
                                 {"is_safe", false},
                                 {"requires_network", false}});
  strings networked;
  strings safe;
  for (const auto& tool : told["tools"]) {
    if (tool["is_safe"] == true) safe.push_back(tool["name"]);
    if (tool["requires_network"] == true) networked.push_back(tool["name"]);
  }
  CHECK(safe == strings{"Glob", "Grep", "Read", "TodoWrite", "BashOutput"});
  CHECK(networked == strings{"WebFetch", "WebSearch"});
  tool_configuration kept;
  kept.disallowed = {"Bash"};
  const tree categories = {
      {"file", 6}, {"system", 3}, {"web", 2}, {"productivity", 3}, {"agent", 1}};
  CHECK(plain(render_tool_stats(kept, 4)) == tree{{"total_tools", 15},
                                                  {"global_allowed", 0},
                                                  {"global_disallowed", 1},
                                                  {"session_configs", 4},
                                                  {"tool_categories", categories}});
  kept.allowed = strings{"Read"};
  CHECK(render_tool_stats(kept, 0)["global_allowed"] == 1);
}

// ---- MCP servers -------------------------------------------------------------------------------

TEST_CASE("MCP server: what a client registers is read, and checked field by field") {
  const auto server = server_of(R"({"name":"a-b_c.1","command":"run","args":["x","y"],
      "env":{"TOKEN":"t"},"description":"d","enabled":false})");
  CHECK(server.name == "a-b_c.1");
  CHECK(server.description == "d");
  CHECK_FALSE(server.enabled);
  CHECK_FALSE(server.connected);
  CHECK(plain(server.config) ==
        tree{{"command", "run"}, {"args", {"x", "y"}}, {"env", {{"TOKEN", "t"}}}});
  const auto least = server_of(R"({"name":"a","command":"run"})");
  CHECK(least.enabled);
  CHECK(plain(least.config) == tree{{"command", "run"}, {"args", tree::array()}});
  const auto param = [](const std::string& fields) {
    const auto error = error_of([&] { server_of("{" + fields + "}"); });
    CHECK(error.kind == error_kind::invalid_request);
    return error.param;
  };
  const std::string good = R"("name":"a","command":"run",)";
  CHECK(param(R"("command":"run")") == "name");
  CHECK(param(R"("name":"a")") == "command");
  for (const auto& name : {std::string(), std::string("a b"), std::string("a/b"), std::string("é"),
                           std::string(101, 'n')}) {
    CHECK(param(R"("command":"run","name":")" + name + "\"") == "name");
  }
  for (const auto& command : {std::string(), std::string("  "), std::string(501, 'c')}) {
    CHECK(param(R"("name":"a","command":")" + command + "\"") == "command");
  }
  CHECK(param(good + R"("args":"x")") == "args");
  CHECK(param(good + R"("args":[1])") == "args[0]");
  CHECK(param(good + R"("env":[])") == "env");
  CHECK(param(good + R"("env":{"A":1})") == "env.A");
  CHECK(param(good + R"("description":1)") == "description");
  CHECK(param(good + R"("enabled":"yes")") == "enabled");
}

TEST_CASE("MCP servers: a client's own are added to the operator's, and replaced by name") {
  fixture given;
  given.settings.mcp_config = given.scratch.write(
      "servers.json",
      R"({"mcpServers":{"files":{"command":"f"},"web":{"type":"http","url":"u"}}})");
  auto& agents = given.agents();
  CHECK(names_of(agents.servers("me")) == strings{"files", "web"});
  agents.add_server("me", server_of(R"({"name":"own","command":"one"})"));
  agents.add_server("me", server_of(R"({"name":"own","command":"two"})"));
  CHECK(names_of(agents.servers("me")) == strings{"files", "web", "own"});
  CHECK(agents.servers("me")[2].config["command"] == "two");
  CHECK(names_of(agents.servers("another")) == strings{"files", "web"});
  const auto error =
      error_of([&] { agents.add_server("me", server_of(R"({"name":"files","command":"mine"})")); });
  CHECK(error.kind == error_kind::permission);
}

TEST_CASE("MCP servers: an operator's file that cannot be used is told at the start") {
  const folder place;
  const child_guard guard;
  for (const auto& path :
       {place / "nothing", place.write("a", "{"), place.write("b", "{}"), place.write("c", ""),
        place.write("d", R"({"mcpServers":[]})"), place.path(),
        place.write("e", R"({"mcpServers":{"deep":)" + std::string(1'000'000, '[') +
                             std::string(1'000'000, ']') + "}}")}) {
    CAPTURE(path);
    options settings;
    settings.mcp_config = path;
    CHECK_THROWS_AS(agent_registry(settings, place.path(), guard), std::invalid_argument);
  }
}

TEST_CASE("MCP servers: agents are given those that are enabled, and may name their tools") {
  fixture given;
  given.settings.environment.clear();  // in which no sandbox can be found
  given.settings.mcp_config =
      given.scratch.write("servers.json", R"({"mcpServers":{"files":{"command":"f"}}})");
  auto& agents = given.agents();
  agents.add_server("me", server_of(R"({"name":"off","command":"o","enabled":false})"));
  agents.add_server("me", server_of(R"({"name":"own","command":"c","env":{"A":"b"}})"));
  const auto agent = given.settled();
  auto expected = default_tools;
  expected.insert(expected.end(), {"mcp__files", "mcp__own"});
  CHECK(agent.tools == expected);
  CHECK(tree::parse(agent.mcp_config) ==
        tree{{"mcpServers",
              {{"files", {{"command", "f"}}},
               {"own", {{"command", "c"}, {"args", tree::array()}, {"env", {{"A", "b"}}}}}}}});
  CHECK(given.settled(asking_tools("mcp__own__say,mcp__files,Read")).tools ==
        strings{"mcp__own__say", "mcp__files", "Read"});
  for (const std::string none : {"mcp__off", "mcp__off__x", "mcp__ow", "mcp__ownx", "mcp__"}) {
    CAPTURE(none);
    CHECK(given.refused(asking_tools(none)) == error_kind::permission);
  }
  CHECK(given.settled({}, "another").tools.back() == "mcp__files");
}

TEST_CASE("MCP servers: they are told without their variables") {
  const auto server = server_of(
      R"({"name":"own","command":"c","args":["a"],"env":{"TOKEN":"secret"},"description":"d"})");
  mcp_server remote{"web", "", claude_openai::json::parse(R"({"type":"http","url":"u"})")};
  remote.connected = true;
  remote.tools = 3;
  remote.resources = 2;
  remote.prompts = 1;
  const auto told = plain(render_mcp_servers({server, remote}));
  CHECK(told["total"] == 2);
  CHECK(told["servers"][0] == tree{{"name", "own"},
                                   {"command", "c"},
                                   {"args", {"a"}},
                                   {"description", "d"},
                                   {"enabled", true},
                                   {"connected", false},
                                   {"tools_count", 0},
                                   {"resources_count", 0},
                                   {"prompts_count", 0}});
  CHECK(told["servers"][1]["command"] == "");
  CHECK(told["servers"][1]["args"] == tree::array());
  CHECK(told["servers"][1]["tools_count"] == 3);
  const auto stats = plain(render_mcp_stats({server, remote, remote}));
  CHECK(stats["registered_servers"] == 3);
  CHECK(stats["connected_servers"] == 2);
  CHECK(stats["total_tools"] == 6);
  CHECK(stats["total_resources"] == 4);
  CHECK(stats["total_prompts"] == 2);
  CHECK(stats["servers"][0] ==
        tree{{"name", "own"}, {"enabled", true}, {"connected", false}, {"description", "d"}});
}

// ---- trying an MCP server ----------------------------------------------------------------------

namespace {

/// A registry whose client `me` has this server.
struct probing : fixture {
  explicit probing(const std::string& command, const std::string& more = "") {
    settings.environment = {{"PATH", "/usr/bin:/bin"},
                            {"HOME", scratch.path()},
                            {"TMPDIR", scratch.path()},
                            {"API_KEY", "a-client-key"}};
    settings.working_directory = scratch.path();
    settings.sandbox = sandbox_use::off;  // which would not see the scripts
    agents().add_server("me", server_of(R"({"name":"own","enabled":false,"command":")" + command +
                                        "\"" + more + "}"));
  }

  mcp_server connect(const std::string& name = "own", const std::string& client = "me") {
    return agents().connect(client, name, stop);
  }

  wake_signal stop;
};

}  // namespace

TEST_CASE("MCP probe: a server is asked for what it offers, and given to agents from then on") {
  const folder place;
  probing given(shell_server(place, hello + answers("tools/list", R"({"tools":[{},{},{}]})") +
                                        answers("prompts/list", R"({"prompts":[{}]})") +
                                        answers("resources/list", R"({"resources":[{},{}]})")));
  CHECK(given.settled().mcp_config.empty());
  const auto server = given.connect();
  CHECK(server.tools == 3);
  CHECK(server.prompts == 1);
  CHECK(server.resources == 0);  // not offered, so not asked for
  CHECK(server.connected);
  CHECK(server.enabled);
  CHECK(given.agents().servers("me")[0].tools == 3);
  CHECK(given.settled().tools.back() == "mcp__own");
  std::istringstream told(contents_of(place / "told"));
  strings methods;
  for (std::string line; std::getline(told, line);) {
    const auto message = tree::parse(line);
    CHECK(message["jsonrpc"] == "2.0");
    methods.push_back(message["method"]);
  }
  CHECK(methods ==
        strings{"initialize", "notifications/initialized", "tools/list", "prompts/list"});
}

TEST_CASE("MCP probe: a server that is disconnected is no longer given to agents") {
  const folder place;
  probing given(shell_server(place, answers("initialize", R"({"capabilities":{}})")));
  auto& agents = given.agents();
  const auto missing = error_of([&] { agents.disconnect("me", "own"); });
  CHECK(missing.kind == error_kind::not_found);
  CHECK(missing.message == "Not connected to MCP server 'own'");
  given.connect();
  CHECK_FALSE(given.settled().mcp_config.empty());
  agents.disconnect("me", "own");
  CHECK(given.settled().mcp_config.empty());
  CHECK_FALSE(agents.servers("me")[0].connected);
  CHECK(error_of([&] { agents.disconnect("me", "own"); }).kind == error_kind::not_found);
  CHECK(error_of([&] { agents.disconnect("me", "nothing"); }).kind == error_kind::not_found);
}

TEST_CASE("MCP probe: what is not registered, or by another client, is a 404") {
  const folder place;
  probing given(shell_server(place, hello));
  CHECK(error_of([&] { given.connect("nothing"); }).kind == error_kind::not_found);
  CHECK(error_of([&] { given.connect("own", "another"); }).kind == error_kind::not_found);
}

TEST_CASE("MCP probe: the server has its own variables and the common ones, no secrets") {
  const folder place;
  const auto printing = hello + "tools/list) env > '" + place.path() + "/env'; pwd > '" +
                        place.path() + R"(/pwd'; echo '{"id":'$id',"result":{"tools":[]}}' ;;)" +
                        "\n" + answers("prompts/list", "{}");
  probing given(shell_server(place, printing), R"(,"args":["x"],"env":{"TOKEN":"t"})");
  CHECK(given.connect().tools == 0);
  const auto variables = "\n" + contents_of(place / "env");
  CHECK(variables.find("\nTOKEN=t\n") != std::string::npos);
  CHECK(variables.find("\nPATH=/usr/bin:/bin\n") != std::string::npos);
  CHECK(variables.find("API_KEY") == std::string::npos);
  CHECK(contents_of(place / "pwd") == given.scratch.path() + "\n");
}

TEST_CASE("MCP probe: noise around the answers does no harm") {
  const folder place;
  const auto noise = R"(initialize) echo 'Starting up'; echo; echo '{"id":7,"result":{}}'
      echo '{"jsonrpc":"2.0","method":"notifications/message","params":{}}'
      head -c 100000 /dev/zero >&2
      echo '{"id":'$id',"result":{"capabilities":{"tools":{}}}}' ;;
)" + answers("tools/list", R"({"tools":[{}]})");
  probing given(shell_server(place, noise));
  CHECK(given.connect().tools == 1);
}

TEST_CASE("MCP probe: a method that the server does not have counts nothing") {
  const folder place;
  probing given(
      shell_server(place, hello + R"(tools/list) echo '{"id":'$id',"error":{"code":-32601}}' ;;
)" + answers("prompts/list", R"({"prompts":[{}]})")));
  const auto server = given.connect();
  CHECK(server.tools == 0);
  CHECK(server.prompts == 1);
}

TEST_CASE("MCP probe: a question of the server's is not taken for its answer") {
  const folder place;
  probing given(shell_server(place, hello + R"(tools/list)
      echo '{"jsonrpc":"2.0","id":'$id',"method":"ping"}'
      echo '{"jsonrpc":"2.0","id":'$id',"result":{"tools":[{},{}]}}' ;;
)" + answers("prompts/list", "{}")));
  CHECK(given.connect().tools == 2);
}

TEST_CASE("MCP probe: a server that refuses to be greeted is not connected") {
  const folder place;
  probing given(shell_server(
      place, R"(initialize) echo '{"id":'$id',"error":{"code":-32602,"message":"no"}}' ;;)"));
  CHECK(error_of([&] { given.connect(); }).kind == error_kind::bad_gateway);
  CHECK_FALSE(given.agents().servers("me")[0].connected);
}

TEST_CASE("MCP probe: a server that ends, cannot start, or is not waited for is a bad gateway") {
  const folder place;
  const auto check = [](probing& given) {
    const auto began = std::chrono::steady_clock::now();
    CHECK(error_of([&] { given.connect(); }).kind == error_kind::bad_gateway);
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(10));
    CHECK_FALSE(given.agents().servers("me")[0].connected);
    CHECK_FALSE(given.agents().servers("me")[0].enabled);
  };
  probing leaves(shell_server(place, "initialize) exit 0 ;;"));
  check(leaves);
  probing absent(place / "nothing");
  check(absent);
  probing silent(shell_server(place, "initialize) ;;"));
  silent.stop.raise();
  check(silent);
}

TEST_CASE("MCP probe: what a server prints is bounded, in depth and in a line's length") {
  const folder place;
  const std::string deep = R"(initialize) printf '{"id":%s,"result":{"capabilities":' $id
      head -c 1000000 /dev/zero | tr '\0' '['; head -c 1000000 /dev/zero | tr '\0' ']'; echo '}}'
      exit ;;)";
  const std::string endless = "initialize) tr '\\0' x < /dev/zero ;;";
  for (const auto& script : {deep, endless}) {
    CAPTURE(script);
    probing given(shell_server(place, script));
    const auto began = std::chrono::steady_clock::now();
    const auto error = error_of([&] { given.connect(); });
    CHECK(error.kind == error_kind::bad_gateway);
    if (script == endless) CHECK(error.message == "the MCP server prints an endless line");
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(14));
    CHECK_FALSE(given.agents().servers("me")[0].connected);
  }
}

TEST_CASE("MCP probe: a server that was registered anew meanwhile stays as it was registered") {
  const folder place;
  const auto waits = hello + "tools/list) : > '" + place.path() + "/asked'; while [ ! -e '" +
                     place.path() + R"(/go' ]; do sleep 0.01; done
      echo '{"id":'$id',"result":{"tools":[{}]}}' ;;
)" + answers("prompts/list", "{}");
  probing given(shell_server(place, waits));
  std::optional<api_error> error;
  std::thread connecting([&] { error = error_of([&] { given.connect(); }); });
  while (!std::filesystem::exists(place / "asked")) std::this_thread::yield();
  given.agents().add_server("me", server_of(R"({"name":"own","command":"fresh"})"));
  place.write("go", "");
  connecting.join();
  CHECK(error->message == "MCP server 'own' was registered anew meanwhile; connect again");
  const auto server = given.agents().servers("me")[0];
  CHECK(server.config["command"] == "fresh");
  CHECK_FALSE(server.connected);  // nobody has tried that one
  CHECK(server.tools == 0);
}

TEST_CASE("MCP probe: a server without a local command cannot be tried") {
  fixture given;
  given.settings.mcp_config = given.scratch.write(
      "servers.json", R"({"mcpServers":{"web":{"type":"http","url":"https://x.example"}}})");
  const wake_signal stop;
  const auto error = error_of([&] { given.agents().connect("me", "web", stop); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK(error.param == "server_name");
}

// ---- the compatibility report ------------------------------------------------------------------

namespace {

tree report_on(const std::string& body) {
  const auto given = parse_body(body);
  auto turn = openai_chat::parse(given, {}).turns.front();
  apply_model_limits(turn, {});
  return plain(openai_chat::render_compatibility(given, turn.ignored_params));
}

}  // namespace

TEST_CASE("compatibility: each field is supported, unsupported or unknown, and advice is given") {
  const auto report = report_on(R"({"model":"m","messages":[{"role":"user","content":"a"}],
      "temperature":0.5,"seed":7,"presence_penalty":1,"stream":null,"user":"u","frobnicate":1})");
  const auto& told = report["compatibility_report"];
  CHECK(told["supported_parameters"] == tree{"model", "messages", "temperature", "user"});
  CHECK(told["unsupported_parameters"] == tree{"presence_penalty", "seed"});
  REQUIRE(told["warnings"].size() == 1);
  CHECK(told["warnings"][0].get<std::string>().find("'frobnicate'") == 0);
  REQUIRE(told["suggestions"].size() == 2);
  CHECK(told["suggestions"][0].get<std::string>().find("'presence_penalty'") != std::string::npos);
  const auto& agent = report["claude_agent_sdk_options"];
  CHECK(agent["supported"].is_array());
  for (const char* header : {"X-Claude-Max-Turns", "X-Claude-Allowed-Tools", "X-Claude-Cwd",
                             "X-Claude-Disallowed-Tools", "X-Claude-Permission-Mode"}) {
    const auto& headers = agent["custom_headers"];
    CHECK(std::find(headers.begin(), headers.end(), header) != headers.end());
  }
}

TEST_CASE("compatibility: a known field that asks for nothing is no stranger") {
  const auto report = report_on(R"({"messages":[{"role":"user","content":"a"}],
      "presence_penalty":0,"frequency_penalty":0,"logit_bias":{},"top_logprobs":0,
      "modalities":["text"],"verbosity":"medium","store":false,"logprobs":false})");
  const auto& told = report["compatibility_report"];
  CHECK(told["unsupported_parameters"] == tree::array());
  CHECK(told["warnings"] == tree::array());
}

TEST_CASE("compatibility: what the model refuses is unsupported in this request") {
  const auto report = report_on(R"({"messages":[{"role":"user","content":"a"}],
      "temperature":0.5,"reasoning_effort":"high"})");
  const auto& told = report["compatibility_report"];
  CHECK(told["unsupported_parameters"] == tree{"temperature"});
  CHECK(told["supported_parameters"] == tree{"messages", "reasoning_effort"});
}
