// Agents over HTTP: what a client asks by fields and headers is what its `claude` is started with,
// and what it sets at the tool and MCP endpoints changes the next answer.
#include "proxy_support.hpp"

#include <sys/stat.h>

using namespace protocol_test;

namespace {

struct fixture {
  explicit fixture(std::function<void(claude_openai::options&)> change = {})
      : proxy(changed(change)) {}

  claude_openai::options changed(const std::function<void(claude_openai::options&)>& change) {
    auto settings = options_for(program);
    if (change) change(settings);
    return settings;
  }

  http_answer post(const std::string& path, const json& body,
                   const std::string& headers = "") const {
    return proxy.ask(path, body.dump(), headers);
  }
  json get(const std::string& path, const std::string& headers = "") const {
    connection client(proxy.port());
    client.write("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + "\r\n");
    const auto got = client.answer();
    REQUIRE_MESSAGE(got.status == 200, got.body);
    return got.parsed();
  }

  http_answer ask(const std::string& headers = "", const json& more = json::object()) const {
    auto body = chat_asking("echo");
    body["enable_tools"] = true;
    body.update(more);
    return post("/v1/chat/completions", body, headers);
  }
  /// What the process that answers was told.
  json echo(const std::string& headers = "", const json& more = json::object()) const {
    const auto got = ask(headers, more);
    REQUIRE_MESSAGE(got.status == 200, got.body);
    const auto message = got.parsed()["choices"][0]["message"];
    return json::parse(message["content"].get<std::string>());
  }

  stand_in program;
  running_proxy proxy;
};

/// The argument behind a flag; `none` when there is no such flag.
std::string value_of(const json& echo, const std::string& flag) {
  const auto& argv = echo["argv"];
  for (std::size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] == flag) return argv[i + 1];
  }
  return "none";
}

/// All arguments behind every such flag, up to the next flags.
std::vector<std::string> values_of(const json& echo, const std::string& flag) {
  std::vector<std::string> values;
  bool within = false;
  for (const auto& one : echo["argv"]) {
    const auto argument = one.get<std::string>();
    within = argument == flag || (within && argument.substr(0, 2) != "--");
    if (within && argument != flag) values.push_back(argument);
  }
  return values;
}

const std::string key = "x-api-key: k\r\n";
const std::string other_key = "x-api-key: other\r\n";
void two_clients(claude_openai::options& settings) {
  settings.api_keys = {"k", "other"};
  settings.allow_mcp_registration = true;
}

using strings = std::vector<std::string>;

bool begins_with(const strings& all, const strings& first) {
  return all.size() >= first.size() && std::equal(first.begin(), first.end(), all.begin());
}

}  // namespace

TEST_CASE("agents: without enable_tools a process has no tools, and headers are named in vain") {
  const fixture given;
  const auto got = given.ask(
      "X-Claude-Max-Turns: 3\r\nX-Claude-Allowed-Tools: Read\r\nX-Claude-Disallowed-Tools: Bash\r\n"
      "X-Claude-Permission-Mode: plan\r\nX-Claude-Cwd: /\r\n",
      {{"enable_tools", false}});
  REQUIRE(got.status == 200);
  CHECK(got.header("x-ignored-params") ==
        "X-Claude-Max-Turns, X-Claude-Allowed-Tools, X-Claude-Disallowed-Tools, "
        "X-Claude-Permission-Mode, X-Claude-Cwd");
  const auto message = got.parsed()["choices"][0]["message"];
  const auto echo = json::parse(message["content"].get<std::string>());
  CHECK(value_of(echo, "--tools") == "");
  CHECK(value_of(echo, "--max-turns") == "none");
  CHECK(value_of(echo, "--permission-mode") == "default");
  CHECK(value_of(echo, "--mcp-config") == "none");
}

TEST_CASE("agents: with enable_tools a process has the usual tools and Claude Code's own prompt") {
  const fixture given;
  const auto echo = given.echo();
  CHECK(value_of(echo, "--tools") == "Bash,Edit,Glob,Grep,Read,Write");
  CHECK(begins_with(values_of(echo, "--disallowedTools"), {"Task", "WebFetch", "WebSearch"}));
  CHECK(value_of(echo, "--max-turns") == "10");
  CHECK(value_of(echo, "--permission-mode") == "default");
}

TEST_CASE("agents: headers are obeyed, in each dialect that has agents") {
  const fixture given([&](auto& settings) { settings.agent_roots = {"/usr"}; });
  const std::string headers =
      "X-Claude-Max-Turns: 3\r\nX-Claude-Allowed-Tools: Read,Bash(git log:*)\r\n"
      "X-Claude-Disallowed-Tools: Write\r\nX-Claude-Permission-Mode: plan\r\n"
      "X-Claude-Cwd: /usr/bin\r\n";
  const json messages = {{{"role", "user"}, {"content", told("echo")}}};
  const json enabled{{"model", "claude-test"}, {"enable_tools", true}};
  const auto with = [&](json more) {
    more.update(enabled);
    return more;
  };
  const auto chat = given.echo(headers);
  const auto message =
      given.post("/v1/messages", with({{"max_tokens", 100}, {"messages", messages}}), headers);
  const auto response = given.post("/v1/responses", with({{"input", told("echo")}}), headers);
  REQUIRE_MESSAGE(message.status == 200, message.body);
  REQUIRE_MESSAGE(response.status == 200, response.body);
  for (const auto& echo :
       {chat, json::parse(message.parsed()["content"][0]["text"].get<std::string>()),
        json::parse(response.parsed()["output"][0]["content"][0]["text"].get<std::string>())}) {
    CHECK(value_of(echo, "--tools") == "Read,Bash");
    CHECK(values_of(echo, "--allowedTools") == strings{"mcp__client", "Bash(git log:*)"});
    CHECK(begins_with(values_of(echo, "--disallowedTools"),
                      {"Task", "WebFetch", "WebSearch", "Write"}));
    CHECK(value_of(echo, "--max-turns") == "3");
    CHECK(value_of(echo, "--permission-mode") == "plan");
    CHECK(echo["cwd"] == std::filesystem::canonical("/usr/bin").string());
  }
}

TEST_CASE("agents: what the operator does not allow is a 403 in the client's dialect") {
  const fixture given([](auto& settings) { settings.builtin_tools = false; });
  const auto chat = given.ask();
  CHECK(chat.status == 403);
  check_error_body(chat.parsed(), "--no-builtin-tools");
  CHECK(chat.parsed()["error"]["type"] == "permission_error");
  const auto message = given.post("/v1/messages", {{"model", "m"},
                                                   {"max_tokens", 9},
                                                   {"enable_tools", true},
                                                   {"messages", chat_asking("text")["messages"]}});
  CHECK(message.status == 403);
  CHECK(message.parsed()["error"]["type"] == "permission_error");
  CHECK(given.program.started() == 1);  // the inspection's
  const fixture open;
  CHECK(open.ask("X-Claude-Cwd: /usr\r\n").status == 403);
  CHECK(open.ask("X-Claude-Permission-Mode: bypassPermissions\r\n").status == 403);
  const auto wrong = open.ask("X-Claude-Max-Turns: many\r\n");
  CHECK(wrong.status == 400);
  CHECK(wrong.parsed()["error"]["param"] == "X-Claude-Max-Turns");
}

TEST_CASE("agents: a client's tool configuration changes its next answer, and nobody else's") {
  const fixture given(two_clients);
  const auto changed = given.post("/v1/tools/config", {{"allowed_tools", {"Read", "Glob"}}}, key);
  REQUIRE(changed.status == 200);
  CHECK(changed.parsed()["effective_tools"] == json{"Glob", "Read"});
  CHECK(value_of(given.echo(key), "--tools") == "Glob,Read");
  CHECK(value_of(given.echo(other_key), "--tools") == "Bash,Edit,Glob,Grep,Read,Write");
  given.post("/v1/tools/config", {{"session_id", "s"}, {"disallowed_tools", {"Bash"}}}, key);
  const auto own = given.get("/v1/tools/config?session_id=s", key);
  CHECK(own["effective_tools"] == json{"Glob", "Read"});
  CHECK(value_of(given.echo(key, {{"session_id", "s"}}), "--tools") == "Glob,Read");
  CHECK(given.get("/v1/tools/stats", key)["session_configs"] == 1);
  CHECK(given.get("/v1/tools/stats", other_key)["session_configs"] == 0);
  CHECK(given.get("/v1/tools", key)["total"] == 15);
  const auto wrong = given.post("/v1/tools/config", {{"allowed_tools", {"Rocket"}}}, key);
  CHECK(wrong.status == 400);
  check_error_body(wrong.parsed(), "Invalid tool names: Rocket");
}

TEST_CASE("agents: an MCP server is given to the client that has registered it, and no other") {
  const fixture given(two_clients);
  const auto script = given.program.folder() + "/server.sh";
  std::ofstream(script)
      << "#!/bin/sh\nread -r line\n"
         "echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"capabilities\":{}}}'\n"
         "while read -r line; do :; done\n";
  ::chmod(script.c_str(), 0700);
  const json server{{"name", "own"}, {"command", script}, {"env", {{"TOKEN", "secret"}}}};
  const auto added = given.post("/v1/mcp/servers", server, key);
  CHECK(added.status == 200);
  CHECK(added.parsed()["message"] == "MCP server 'own' registered successfully");
  const auto listed = given.get("/v1/mcp/servers", key);
  CHECK(listed["total"] == 1);
  CHECK(listed.dump().find("secret") == std::string::npos);
  CHECK(given.get("/v1/mcp/servers", other_key)["total"] == 0);
  const auto connected = given.post("/v1/mcp/connect", {{"server_name", "own"}}, key);
  CHECK(connected.status == 200);
  CHECK(connected.parsed() == json{{"message", "Connected to MCP server 'own'"},
                                   {"tools", 0},
                                   {"resources", 0},
                                   {"prompts", 0}});
  CHECK(given.get("/v1/mcp/stats", key)["connected_servers"] == 1);
  const auto echo = given.echo(key);
  CHECK(value_of(echo, "--mcp-config") == "/dev/fd/3");
  const auto config = json::parse(echo["mcp_config"].get<std::string>());
  CHECK(config["mcpServers"]["own"]["env"]["TOKEN"] == "secret");
  for (const char* seen_by_others : {"argv", "values"}) {
    CHECK(echo[seen_by_others].dump().find("secret") == std::string::npos);
  }
  CHECK(value_of(given.echo(other_key), "--mcp-config") == "none");
  CHECK(given.post("/v1/mcp/disconnect", {{"server_name", "own"}}, key).status == 200);
  CHECK(value_of(given.echo(key), "--mcp-config") == "none");
  CHECK(given.post("/v1/mcp/disconnect", {{"server_name", "own"}}, key).status == 404);
  CHECK(given.post("/v1/mcp/connect", {{"server_name", "own"}}, other_key).status == 404);
}

TEST_CASE("agents: nobody registers a command unless the operator allows it, key or not") {
  const json server{{"name", "own"}, {"command", "/bin/true"}};
  const fixture closed([](auto& settings) { settings.api_keys = {"k"}; });
  const auto got = closed.post("/v1/mcp/servers", server, key);
  CHECK(got.status == 403);
  check_error_body(got.parsed(), "--allow-mcp-registration");
  CHECK(closed.get("/v1/mcp/servers", key)["total"] == 0);
  const fixture open([](auto& settings) { settings.allow_mcp_registration = true; });
  CHECK(open.post("/v1/mcp/servers", server).status == 200);
  CHECK(open.get("/v1/mcp/servers")["total"] == 1);
  CHECK(open.post("/v1/mcp/connect", {{"server_name", "own"}}).status == 502);
  const fixture chats_only([](auto& settings) {
    settings.allow_mcp_registration = true;
    settings.builtin_tools = false;
  });
  for (const std::string path : {"/v1/mcp/servers", "/v1/mcp/connect", "/v1/mcp/disconnect"}) {
    CAPTURE(path);
    auto body = server;
    body["server_name"] = "own";
    const auto refused = chats_only.post(path, body);
    CHECK(refused.status == 403);
    check_error_body(refused.parsed(), "--no-builtin-tools");
  }
}

TEST_CASE("compatibility: the report tells of a request what its answer would honour") {
  const fixture given;
  auto body = chat_asking("text");
  body["seed"] = 7;
  body["temperature"] = 0.5;
  const auto got = given.post("/v1/compatibility", body, "X-Claude-Max-Turns: 3\r\n");
  REQUIRE(got.status == 200);
  const auto report = got.parsed()["compatibility_report"];
  CHECK(report["supported_parameters"] == json{"model", "messages", "temperature"});
  CHECK(report["unsupported_parameters"] == json{"seed", "X-Claude-Max-Turns"});
  CHECK(given.program.started() == 1);  // the inspection's: nobody was asked
}
