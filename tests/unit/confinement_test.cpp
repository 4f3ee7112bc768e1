// [16] cli_command and [23] agents: what an agent reaches of the machine, by its file tools, by its
// commands, and by its MCP servers.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/agents.hpp"

using namespace claude_openai;
using namespace agents_test;
using test::error_of;

namespace {

const std::vector<confinement> all_kinds = {confinement::none, confinement::files,
                                            confinement::commands};

agent_request agent_with(const strings& tools, confinement confined) {
  agent_request agent;
  agent.tools = tools;
  agent.permission_mode = "default";
  agent.directory = "/scratch/agents/me/work";
  agent.private_directory = "/scratch/agents/me";
  agent.confined = confined;
  return agent;
}

/// The words that the shell of the confining script reads.
strings confining_words(const command& made) {
  const child_guard guard;
  const wake_signal never;
  const command shell{
      {"/bin/sh", "-c", R"(eval "set -- $WORDS"; printf '%s\n' "$@")"},
      {{"PATH", "/usr/bin:/bin"}, {"WORDS", made.environment.at("CLAUDE_OPENAI_CONFINE")}},
      "/"};
  const auto printed = run_command(shell, guard, std::chrono::seconds(60), never).output;
  strings words;
  for (const auto& word : text::split(printed, '\n')) words.emplace_back(word);
  return words;
}

/// What follows each occurrence of a word.
std::set<std::string> all_after(const strings& words, const std::string& word) {
  std::set<std::string> found;
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == word) found.insert(words[i + 1]);
  }
  return found;
}

/// The variables that bubblewrap itself does not get either: another process may read what it has.
std::set<std::string> taken_away(const strings& words) {
  return all_after(strings(words.begin(), std::find(words.begin(), words.end(), "bwrap")), "-u");
}

bool has(const strings& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// An environment in which each way to log in has left its variables.
environment_map with_secrets() {
  environment_map all;
  for (const std::string name :
       {"HOME", "PATH", "TMPDIR", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_REGION",
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
        "AWS_BEARER_TOKEN_BEDROCK", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUD_ML_REGION"}) {
    all[name] = "value of " + name;
  }
  all["TMPDIR"] = "/scratch";
  return all;
}

options settings_for(auth_method method) {
  options settings;
  settings.auth = method;
  settings.claude_path = "/opt/claude";
  settings.environment = with_secrets();
  return settings;
}

const std::vector<auth_method> methods = {auth_method::cli, auth_method::api_key,
                                          auth_method::bedrock, auth_method::vertex};

/// Makes the registry find a system that can confine so much.
void confine(fixture& given, confinement confined) {
  if (confined == confinement::none) given.settings.sandbox = sandbox_use::off;
  if (confined == confinement::commands) {
    ::chmod(given.scratch.write("bwrap", "#!/bin/sh\nexit 0\n").c_str(), 0700);
  }
  given.settings.environment["PATH"] = given.scratch.path();
}

}  // namespace

// ---- file tools --------------------------------------------------------------------------------

TEST_CASE("confinement: without it an agent's tools need no permission, wherever they reach") {
  const auto agent = agent_with({"Read", "Edit", "Bash(git:*)"}, confinement::none);
  CHECK(allowed_rules({}, agent) == agent.tools);
}

TEST_CASE("confinement: no file tool is allowed by its bare name, writing in the directories is") {
  options settings;
  settings.agent_directories = {"/data sets"};
  for (const auto confined : {confinement::files, confinement::commands}) {
    CHECK(allowed_rules(settings, agent_with({"Read", "Glob", "Grep", "Bash"}, confined)) ==
          strings{"Bash"});
    for (const std::string writes : {"Edit", "Write", "NotebookEdit"}) {
      CHECK(allowed_rules(settings, agent_with({"Read", writes, "mcp__x"}, confined)) ==
            strings{"mcp__x", "Edit(//data?sets/**)", "Edit(//scratch/agents/me/work/**)"});
    }
    CHECK(allowed_rules(settings, agent_with({"Read(a/**)", "Edit(b)"}, confined)) ==
          strings{"Read(a/**)", "Edit(b)"});
  }
}

TEST_CASE("confinement: the CLI is told to keep to the directories, when it can") {
  for (const auto confined : all_kinds) {
    const auto made =
        make_command(settings_for(auth_method::cli), {"m", agent_with({"Read"}, confined)});
    CHECK(value_or(made.environment, "CLAUDE_CODE_RESTRICTED") ==
          (confined == confinement::none ? "" : "1"));
  }
}

TEST_CASE("confinement: files with secrets are denied to all tools, confined or not") {
  options settings;
  settings.secret_paths = {"/home/me/.claude", "/srv/a b"};
  for (const auto confined : all_kinds) {
    auto agent = agent_with({"Read"}, confined);
    agent.disallowed = {"Bash(rm:*)"};
    CHECK(denied_rules(settings, agent) ==
          strings{"Bash(rm:*)", "Read(//home/me/.claude)", "Read(//home/me/.claude/**)",
                  "Edit(//home/me/.claude)", "Edit(//home/me/.claude/**)", "Read(//srv/a?b)",
                  "Read(//srv/a?b/**)", "Edit(//srv/a?b)", "Edit(//srv/a?b/**)"});
  }
}

TEST_CASE("confinement: a client's rule for a file tool does not leave the agent's directories") {
  fixture given;
  for (const std::string rule : {"Read(/etc/passwd)", "Read(//etc/**)", "Read(~/x)", "Read(!x)",
                                 "Edit(../x)", "Write(a/../../b)", "Glob(/**)", "Grep(~root/**)",
                                 "NotebookEdit(/x)", "Read(*)", "Edit(**)"}) {
    CAPTURE(rule);
    CHECK(given.refused(asking_tools(rule)) == error_kind::permission);
  }
  for (const std::string rule : {"Read(src/**)", "Edit(./a)", "Read(*.md)", "Bash(cat /etc/x)",
                                 "Bash(*)", "Read", "WebFetch(domain:*)"}) {
    CAPTURE(rule);
    given.agents().configure("me", "", std::nullopt, strings{});
    CHECK(given.settled(asking_tools(rule)).tools == strings{rule});
  }
}

TEST_CASE("confinement: a client's rule takes nothing out of what is denied") {
  for (const auto use : {sandbox_use::automatic, sandbox_use::off}) {
    fixture given;
    given.settings.sandbox = use;
    given.settings.disallowed_tools = {"Read(.env)"};
    for (const std::string rule : {"Read(!.env)", "Read(!**)", "Edit(!x)", "Bash,View(!x)"}) {
      CAPTURE(rule);
      CHECK(given.refused(asking_not(rule)) == error_kind::permission);
    }
    CHECK(given.settled(asking_not("Bash(! x:*),Read(a!)")).disallowed.back() == "Read(a!)");
  }
}

TEST_CASE("confinement: a rule that leaves the directories is the operator's to give") {
  fixture named;
  named.settings.allowed_tools = {"Read(//data/**)", "Edit"};
  CHECK(named.settled(asking_tools("Read(//data/**)")).tools == strings{"Read(//data/**)"});
  CHECK(named.refused(asking_tools("Edit(//data/**)")) == error_kind::permission);
  fixture open;
  open.settings.sandbox = sandbox_use::off;
  CHECK(open.settled(asking_tools("Read(//etc/**)")).tools == strings{"Read(//etc/**)"});
}

TEST_CASE("confinement: where it is demanded and the system cannot do it, there are no agents") {
  fixture given;  // with a PATH that has no bubblewrap
  given.settings.environment["PATH"] = given.scratch.path();
  CHECK(given.settled().confined == confinement::files);
  fixture strict;
  strict.settings.environment["PATH"] = strict.scratch.path();
  strict.settings.sandbox = sandbox_use::on;
  const auto error = error_of([&] { strict.settled(); });
  CHECK(error.kind == error_kind::unavailable);
  CHECK(error.message.find("bubblewrap") != std::string::npos);
  fixture off;
  off.settings.sandbox = sandbox_use::off;
  CHECK(off.settled().confined == confinement::none);
}

// ---- commands ----------------------------------------------------------------------------------

TEST_CASE(
    "confinement: a command sees its directories and the system's programs, and changes no other") {
  auto settings = settings_for(auth_method::cli);
  settings.agent_directories = {"/it's data"};
  const auto made = make_command(settings, {"m", agent_with({"Bash"}, confinement::commands)});
  CHECK(made.environment.at("CLAUDE_CODE_SHELL_PREFIX") == "/scratch/confine");
  const auto words = confining_words(made);
  CHECK(words.front() == "env");
  CHECK(has(words, "bwrap"));
  CHECK(all_after(words, "--bind") ==
        std::set<std::string>{"/it's data", "/scratch/agents/me/work", "/scratch/agents/me/tmp"});
  for (const auto& part : all_after(words, "--ro-bind-try")) {
    CAPTURE(part);
    CHECK(part.find("/home") != 0);
    CHECK(part.find("/root") != 0);
    CHECK(part != "/");
    CHECK(part != "/etc");
    CHECK(part.find("/scratch") != 0);
  }
  CHECK_FALSE(has(words, "--ro-bind"));
  CHECK_FALSE(has(words, "--dev-bind"));
  CHECK(all_after(words, "--chdir") == std::set<std::string>{"/scratch/agents/me/work"});
  CHECK(all_after(words, "HOME") == std::set<std::string>{"/scratch/agents/me/tmp"});
  CHECK(strings(words.end() - 4, words.end()) == strings{"bash", "-c", "eval \"$1\"", "confined"});
}

TEST_CASE("confinement: a command has the network only where the operator allows it") {
  for (const bool network : {false, true}) {
    auto settings = settings_for(auth_method::cli);
    settings.sandbox_network = network;
    const auto words =
        confining_words(make_command(settings, {"m", agent_with({"Bash"}, confinement::commands)}));
    CHECK(has(words, "--unshare-all"));
    CHECK(has(words, "--share-net") == network);
  }
}

TEST_CASE("confinement: of the variables that a login is in, a command has none") {
  for (const auto method : methods) {
    CAPTURE(name_of(method));
    const auto made =
        make_command(settings_for(method), {"m", agent_with({"Bash"}, confinement::commands)});
    const auto taken = taken_away(confining_words(made));
    for (const auto& variable : made.environment) {
      const auto& name = variable.first;
      CAPTURE(name);
      const bool kept = taken.count(name) == 0;
      const bool from_us = variable.second != "value of " + name;
      CHECK((!kept || from_us || name == "HOME" || name == "PATH"));
      CHECK((!kept || name.find("FILE_DESCRIPTOR") == std::string::npos));
    }
    CHECK(taken.count("GIT_DIR") == 1);
  }
  auto headers = settings_for(auth_method::api_key);
  const auto made = make_command(headers, {"m", agent_with({"Bash"}, confinement::commands)});
  const auto taken = taken_away(confining_words(made));
  CHECK(taken.count("ANTHROPIC_AUTH_TOKEN") == made.environment.count("ANTHROPIC_AUTH_TOKEN"));
  CHECK(taken.count("ANTHROPIC_CUSTOM_HEADERS") ==
        made.environment.count("ANTHROPIC_CUSTOM_HEADERS"));
}

TEST_CASE("agent: the account's key is in no variable, but in a pipe that is read once") {
  for (const auto confined : all_kinds) {
    for (const auto& [method, name, carrier] :
         {std::make_tuple(auth_method::api_key, "ANTHROPIC_API_KEY",
                          "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"),
          std::make_tuple(auth_method::cli, "CLAUDE_CODE_OAUTH_TOKEN",
                          "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR")}) {
      auto agent = agent_with({"Bash"}, confined);
      auto made = make_command(settings_for(method), {"m", agent});
      const std::string secret = std::string("value of ") + name;
      CHECK(made.environment.count(name) == 0);
      CHECK(made.environment.at(carrier) == "3");
      CHECK(made.inherited == strings{secret});
      agent.mcp_config = "{}";
      made = make_command(settings_for(method), {"m", agent});
      CHECK(made.environment.at(carrier) == "4");
      CHECK(made.inherited == strings{"{}", secret});
      for (const auto& argument : made.arguments) CHECK(argument.find(secret) == argument.npos);
    }
  }
}

TEST_CASE("agent: files and sockets of its process are in its client's own directory") {
  for (const auto confined : all_kinds) {
    const auto variables =
        make_command(settings_for(auth_method::cli), {"m", agent_with({}, confined)}).environment;
    CHECK(variables.at("TMPDIR") == "/scratch/agents/me/tmp");
    CHECK(variables.at("CLAUDE_CODE_TMPDIR") == "/scratch/agents/me/claude");
  }
}

TEST_CASE("agents: each client's have directories of their own, made for this user alone") {
  fixture given;
  std::set<std::string> places;
  for (const std::string client : {"me", "another", ""}) {
    const auto agent = given.settled({}, client);
    places.insert(agent.private_directory);
    for (const auto& path :
         {agent.private_directory, agent.directory, agent.private_directory + "/tmp"}) {
      struct stat about {};
      REQUIRE(::stat(path.c_str(), &about) == 0);
      CHECK(S_ISDIR(about.st_mode));
      CHECK((about.st_mode & 0777) == 0700);
    }
  }
  CHECK(places.size() == 3);
}

// ---- MCP servers and modes ---------------------------------------------------------------------

TEST_CASE("confinement: an operator's MCP server runs as it is, a client's is confined") {
  for (const auto confined : all_kinds) {
    fixture given;
    confine(given, confined);
    given.settings.mcp_config = given.scratch.write(
        "servers.json", R"({"mcpServers":{"files":{"command":"f","args":["it's","b c"],
                           "env":{"A":"b"}},"web":{"type":"http","url":"u"}}})");
    given.agents().add_server("me", server_of(R"({"name":"own","command":"c","env":{"A":"b"}})"));
    const auto agent = given.settled();
    REQUIRE(agent.confined == confined);
    const auto config = claude_openai::json::parse(agent.mcp_config)["mcpServers"];
    const bool commands = confined == confinement::commands;
    CHECK(config["files"]["env"].contains("CLAUDE_OPENAI_SERVER") == commands);
    CHECK(config["files"]["env"]["A"] == "b");
    if (commands) {
      CHECK(config["files"]["env"]["CLAUDE_OPENAI_SERVER"] == R"('f' 'it'\''s' 'b c')");
    }
    CHECK_FALSE(config["web"].contains("env"));
    CHECK_FALSE(config["own"]["env"].contains("CLAUDE_OPENAI_SERVER"));
    CHECK(config["own"]["env"].contains("A") == !commands);
  }
}

TEST_CASE("confinement: a client's MCP server is started, and gets its variables, inside alone") {
  CAPTURE(test::seed());
  test::generator random(35);
  const wake_signal never;
  strings values = {"", "'", "${HOME}", "$(id)", "a\nb", "\\", "$'x'", "$", "{", "LD_PRELOAD"};
  for (int i = 0; i < 20; ++i) values.push_back(random.words(8));
  for (const auto& value : values) {
    CAPTURE(value);
    fixture given;
    confine(given, confinement::commands);
    const auto* print = R"(printf '%s|%s|%s' "$1" "$LD_PRELOAD" "$PATH")";
    const test::json body{{"name", "own"},
                          {"command", "/bin/sh"},
                          {"args", {"-c", print, "sh", value}},
                          {"env", {{"LD_PRELOAD", value}, {"CLAUDE_OPENAI_SERVER", "x"}}}};
    given.agents().add_server("me", server_of(body.dump()));
    const auto config = claude_openai::json::parse(given.settled().mcp_config)["mcpServers"]["own"];
    REQUIRE(config["env"].size() == 1);
    CHECK_FALSE(config.contains("args"));
    const auto line = config["env"].begin()->get<std::string>();
    CHECK(line.find("${") == std::string::npos);  // which the CLI would replace
    const command inside{{"/bin/sh", "-c", line}, {{"PATH", "/usr/bin:/bin"}}, "/"};
    const auto printed = run_command(inside, given.guard, std::chrono::seconds(60), never);
    CHECK(printed.output == value + "|" + value + "|/usr/bin:/bin");
  }
}

TEST_CASE("confinement: a client's MCP server is tried where it will run, an operator's as it is") {
  fixture given;
  const wake_signal never;
  const auto script = shell_server(given.scratch, answers("initialize", R"({"capabilities":{}})"));
  given.settings.mcp_config = given.scratch.write(
      "servers.json", R"({"mcpServers":{"files":{"command":")" + script + R"("}}})");
  // In the place of bubblewrap, a program that notes its words and runs what stands behind them.
  const auto note = "echo \"$@\" >> '" + given.scratch.path() + "/noted'\n";
  const auto run = R"(while [ "$1" != bash ]; do shift; done; exec "$@")";
  ::chmod(given.scratch.write("bwrap", "#!/bin/sh\n" + note + run).c_str(), 0700);
  given.settings.environment["PATH"] = given.scratch.path() + ":/usr/bin:/bin";
  given.agents().add_server("me", server_of(R"({"name":"own","command":")" + script + R"("})"));
  REQUIRE(given.settled().confined == confinement::commands);
  const auto times = [&] {
    const auto noted = contents_of(given.scratch / "noted");
    return std::count(noted.begin(), noted.end(), '\n');
  };
  const auto before = times();
  CHECK(given.agents().connect("me", "files", never).connected);
  CHECK(times() == before);
  CHECK(given.agents().connect("me", "own", never).connected);
  CHECK(times() == before + 1);
}

TEST_CASE("confinement: a client's variable has a name that a shell can export") {
  for (const std::string name : {"", "1A", "A-B", "A B", "A=B", "BASH_FUNC_x%%", "A;B"}) {
    CAPTURE(name);
    const auto error = error_of(
        [&] { server_of(R"({"name":"own","command":"c","env":{")" + name + R"(":"x"}})"); });
    CHECK(error.kind == error_kind::invalid_request);
    CHECK(error.param == "env." + name);
  }
}

TEST_CASE(
    "agents: with acceptEdits no rule would bound commands, so that it is refused beside such") {
  fixture given;
  given.settings.permission_mode = "acceptEdits";
  given.settings.allowed_tools = {"Read", "Bash(git:*)"};
  const auto error = error_of([&] { given.settled(asking_mode("acceptEdits")); });
  CHECK(error.kind == error_kind::permission);
  CHECK(error.message.find("acceptEdits") != std::string::npos);
  CHECK(given.settled().permission_mode == "default");
  CHECK(given.settled(asking_mode("plan")).permission_mode == "plan");
  for (const auto& tools : {strings{}, strings{"Read", "Edit"}, strings{"Bash"}}) {
    fixture unbounded;
    unbounded.settings.permission_mode = "acceptEdits";
    unbounded.settings.allowed_tools = tools;
    CHECK(unbounded.settled(asking_mode("acceptEdits")).permission_mode == "acceptEdits");
  }
}
