// [12] cli_command: how `claude` is started.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;

namespace {

/// An environment with all that a proxy may meet: good, secret and odd.
environment_map full_environment() {
  environment_map all;
  for (const std::string name : {"HOME",
                                 "PATH",
                                 "USER",
                                 "LOGNAME",
                                 "SHELL",
                                 "LANG",
                                 "LC_ALL",
                                 "LC_CTYPE",
                                 "TZ",
                                 "TMPDIR",
                                 "XDG_CONFIG_HOME",
                                 "HTTPS_PROXY",
                                 "https_proxy",
                                 "NO_PROXY",
                                 "NODE_EXTRA_CA_CERTS",
                                 "CLAUDE_CONFIG_DIR",
                                 "API_KEY",
                                 "API_KEYS",
                                 "OPENAI_API_KEY",
                                 "PORT",
                                 "DEFAULT_MODEL",
                                 "MAX_TIMEOUT",
                                 "ANTHROPIC_API_KEY",
                                 "ANTHROPIC_AUTH_TOKEN",
                                 "ANTHROPIC_BASE_URL",
                                 "ANTHROPIC_MODEL",
                                 "CLAUDE_CODE_OAUTH_TOKEN",
                                 "CLAUDE_CODE_USE_BEDROCK",
                                 "CLAUDE_CODE_USE_VERTEX",
                                 "CLAUDE_CODE_MAX_RETRIES",
                                 "MAX_THINKING_TOKENS",
                                 "AWS_REGION",
                                 "AWS_ACCESS_KEY_ID",
                                 "AWS_SECRET_ACCESS_KEY",
                                 "AWS_SESSION_TOKEN",
                                 "AWS_PROFILE",
                                 "AWS_BEARER_TOKEN_BEDROCK",
                                 "ANTHROPIC_BEDROCK_BASE_URL",
                                 "ANTHROPIC_VERTEX_PROJECT_ID",
                                 "ANTHROPIC_VERTEX_BASE_URL",
                                 "CLOUD_ML_REGION",
                                 "GOOGLE_APPLICATION_CREDENTIALS",
                                 "GCLOUD_PROJECT",
                                 "LD_PRELOAD",
                                 "LD_LIBRARY_PATH",
                                 "NODE_OPTIONS",
                                 "BASH_ENV",
                                 "GITHUB_TOKEN",
                                 "DATABASE_URL",
                                 "SSH_AUTH_SOCK",
                                 "CLAUDECODE",
                                 "CLAUDE_CODE_ENTRYPOINT",
                                 "CLAUDE_WRAPPER_HOST",
                                 "LC",
                                 "XDG",
                                 "HOMER",
                                 "AWS",
                                 "PATHX",
                                 "ANTHROPIC_API_KEY_OLD",
                                 "random_thing"}) {
    all[name] = std::string("value of ") + name;
  }
  return all;
}

options settings_for(auth_method method) {
  options settings;
  settings.auth = method;
  settings.claude_path = "/opt/claude";
  settings.working_directory = "/scratch";
  settings.environment = full_environment();
  settings.api_keys = {"client-key-one", "client-key-two"};
  return settings;
}

/// The names of the child's variables that came from the proxy's environment, value and all.
std::set<std::string> inherited(auth_method method) {
  std::set<std::string> names;
  const auto settings = settings_for(method);
  for (const auto& [name, value] : child_environment(settings)) {
    if (value == "value of " + name) names.insert(name);
  }
  return names;
}

const std::vector<auth_method> methods = {auth_method::cli, auth_method::api_key,
                                          auth_method::bedrock, auth_method::vertex};

const std::set<std::string> common = {"HOME",
                                      "PATH",
                                      "USER",
                                      "LOGNAME",
                                      "SHELL",
                                      "LANG",
                                      "LC_ALL",
                                      "LC_CTYPE",
                                      "TZ",
                                      "TMPDIR",
                                      "XDG_CONFIG_HOME",
                                      "HTTPS_PROXY",
                                      "https_proxy",
                                      "NO_PROXY",
                                      "NODE_EXTRA_CA_CERTS",
                                      "CLAUDE_CONFIG_DIR"};

std::set<std::string> common_and(const std::set<std::string>& more) {
  auto all = common;
  all.insert(more.begin(), more.end());
  return all;
}

}  // namespace

TEST_CASE("child environment: each auth method gets its own credentials and no other's") {
  CHECK(inherited(auth_method::cli) ==
        common_and({"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL"}));
  CHECK(inherited(auth_method::api_key) ==
        common_and({"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"}));
  CHECK(inherited(auth_method::bedrock) ==
        common_and({"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
                    "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "ANTHROPIC_BEDROCK_BASE_URL"}));
  CHECK(inherited(auth_method::vertex) ==
        common_and({"ANTHROPIC_VERTEX_PROJECT_ID", "ANTHROPIC_VERTEX_BASE_URL", "CLOUD_ML_REGION",
                    "GOOGLE_APPLICATION_CREDENTIALS", "GCLOUD_PROJECT"}));
}

TEST_CASE("child environment: with the CLI's own login no API key passes") {
  const auto variables = child_environment(settings_for(auth_method::cli));
  CHECK(variables.count("ANTHROPIC_API_KEY") == 0);
  CHECK(variables.count("ANTHROPIC_AUTH_TOKEN") == 0);
}

TEST_CASE("child environment: client keys, loaders and unknown variables never pass") {
  for (const auto method : methods) {
    const auto variables = child_environment(settings_for(method));
    for (const std::string name : {"API_KEY",
                                   "API_KEYS",
                                   "OPENAI_API_KEY",
                                   "LD_PRELOAD",
                                   "LD_LIBRARY_PATH",
                                   "NODE_OPTIONS",
                                   "BASH_ENV",
                                   "GITHUB_TOKEN",
                                   "DATABASE_URL",
                                   "SSH_AUTH_SOCK",
                                   "CLAUDECODE",
                                   "CLAUDE_CODE_ENTRYPOINT",
                                   "LC",
                                   "XDG",
                                   "HOMER",
                                   "AWS",
                                   "PATHX",
                                   "ANTHROPIC_API_KEY_OLD",
                                   "random_thing",
                                   "ANTHROPIC_MODEL"}) {
      CAPTURE(name);
      CHECK(variables.count(name) == 0);
    }
    for (const auto& each : variables) {
      const auto& name = each.first;
      const auto& value = each.second;
      CAPTURE(name);
      CHECK(value.find("client-key") == std::string::npos);
    }
  }
}

TEST_CASE("child environment: what the proxy decides is not the environment's to change") {
  for (const auto method : methods) {
    const auto variables = child_environment(settings_for(method));
    CHECK(variables.at("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC") == "1");
    CHECK(variables.at("DISABLE_AUTOUPDATER") == "1");
    CHECK(text::try_number<int>(variables.at("CLAUDE_CODE_MAX_RETRIES")).value_or(99) <= 2);
    CHECK(variables.at("MAX_THINKING_TOKENS") == "0");
    CHECK(variables.at("CLAUDE_CODE_DISABLE_ATTACHMENTS") == "1");
    CHECK(variables.at("CLAUDE_CODE_DISABLE_CLAUDE_MDS") == "1");
    const bool bedrock = method == auth_method::bedrock;
    const bool vertex = method == auth_method::vertex;
    CHECK(variables.count("CLAUDE_CODE_USE_BEDROCK") == (bedrock ? 1 : 0));
    CHECK(variables.count("CLAUDE_CODE_USE_VERTEX") == (vertex ? 1 : 0));
    if (bedrock) CHECK(variables.at("CLAUDE_CODE_USE_BEDROCK") == "1");
    if (vertex) CHECK(variables.at("CLAUDE_CODE_USE_VERTEX") == "1");
  }
}

TEST_CASE("child environment: any other variable stays with the proxy") {
  CAPTURE(test::seed());
  test::generator random(17);
  const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_";
  for (const auto method : methods) {
    options settings;
    settings.auth = method;
    const auto own = child_environment(settings);
    for (int i = 0; i < 500; ++i) {
      std::string name = "Q";
      for (std::size_t n = random.between(1, 12); n > 0; --n) name += random.pick(letters);
      settings.environment[name] = "secret";
    }
    CHECK(child_environment(settings) == own);
  }
}

TEST_CASE("auth: the operator's choice is taken before what the environment says") {
  for (const auto method : methods) {
    CHECK(resolve_auth(settings_for(method)) == method);
  }
}

TEST_CASE("auth: the method is found out from the environment") {
  const std::vector<std::pair<environment_map, auth_method>> cases = {
      {{}, auth_method::cli},
      {{{"ANTHROPIC_API_KEY", ""}}, auth_method::cli},
      {{{"CLAUDE_CODE_OAUTH_TOKEN", "t"}}, auth_method::cli},
      {{{"ANTHROPIC_API_KEY", "k"}}, auth_method::api_key},
      {{{"ANTHROPIC_AUTH_TOKEN", "k"}}, auth_method::api_key},
      {{{"CLAUDE_CODE_USE_BEDROCK", "1"}}, auth_method::bedrock},
      {{{"CLAUDE_CODE_USE_BEDROCK", "0"}}, auth_method::cli},
      {{{"CLAUDE_CODE_USE_BEDROCK", "true"}}, auth_method::bedrock},
      {{{"CLAUDE_CODE_USE_BEDROCK", "false"}}, auth_method::cli},
      {{{"CLAUDE_CODE_USE_VERTEX", "1"}}, auth_method::vertex},
      {{{"CLAUDE_CODE_USE_VERTEX", "TRUE"}}, auth_method::vertex},
      {{{"CLAUDE_CODE_USE_VERTEX", ""}}, auth_method::cli},
      {{{"CLAUDE_CODE_USE_BEDROCK", "1"}, {"ANTHROPIC_API_KEY", "k"}}, auth_method::bedrock},
      {{{"CLAUDE_CODE_USE_VERTEX", "1"}, {"ANTHROPIC_API_KEY", "k"}}, auth_method::vertex},
      {{{"AWS_REGION", "eu-west-1"}}, auth_method::cli}};
  for (const auto& each : cases) {
    const auto& environment = each.first;
    const auto& method = each.second;
    options settings;
    settings.environment = environment;
    CAPTURE(name_of(method));
    CHECK(resolve_auth(settings) == method);
  }
}

TEST_CASE("command: the whole line, for an API key and for the CLI's own login") {
  const strings expected = {"/opt/claude",
                            "-p",
                            "--input-format",
                            "stream-json",
                            "--output-format",
                            "stream-json",
                            "--verbose",
                            "--include-partial-messages",
                            "--model=sonnet",
                            "--tools",
                            "",
                            "--setting-sources",
                            "",
                            "--strict-mcp-config",
                            "--no-session-persistence",
                            "--disable-slash-commands",
                            "--permission-mode",
                            "default",
                            "--allowedTools",
                            "mcp__client"};
  auto with_bare = expected;
  with_bare.emplace_back("--bare");
  CHECK(make_command(settings_for(auth_method::cli), {"sonnet"}).arguments == expected);
  CHECK(make_command(settings_for(auth_method::api_key), {"sonnet"}).arguments == with_bare);
  CHECK(make_command(settings_for(auth_method::bedrock), {"sonnet"}).arguments == with_bare);
  CHECK(make_command(settings_for(auth_method::vertex), {"sonnet"}).arguments == with_bare);
}

TEST_CASE("command: the flag that takes `--bare` back is found among those of `--help`") {
  const std::string usual =
      "Options:\n  --bare      Minimal mode, as --with-bare; see --no-bare\n"
      "  -d, --debug [filter]  With --no-bare\n";
  CHECK(find_login_flag(usual).empty());
  CHECK(find_login_flag(usual + "  --no-bare   Reads the login\n") == "--no-bare");
  CHECK(find_login_flag(usual + "  -B, --disable-bare  Reads the login\n") == "--disable-bare");
  CHECK(find_login_flag("  --unbare  x\n  --no-bare  y\n") == "--no-bare");
  CHECK(find_login_flag("").empty());
}

TEST_CASE("command: it runs in the proxy's folder with the child's own environment") {
  const auto settings = settings_for(auth_method::api_key);
  const auto made = make_command(settings, {"sonnet"});
  CHECK(made.working_directory == "/scratch");
  auto expected = child_environment(settings);
  expected["CLAUDE_AGENT_SDK_MCP_NO_PREFIX"] = "1";  // the model sees the client's own names
  expected["GIT_DIR"] = "/dev/null";                 // a repository's settings can name commands
  CHECK(made.environment == expected);
}

TEST_CASE("command: a model is one argument that no parser can take for a flag") {
  for (const std::string model : {"--dangerously-skip-permissions", "-p", "a b", "", "x=y"}) {
    const auto made = make_command(settings_for(auth_method::cli), {model});
    const auto expected = "--model=" + model;
    CHECK(std::count(made.arguments.begin(), made.arguments.end(), expected) == 1);
    CHECK(std::count(made.arguments.begin(), made.arguments.end(), model) == (model.empty()   ? 2
                                                                              : model == "-p" ? 1
                                                                                              : 0));
  }
}

TEST_CASE("command: no built-in tool, no settings, no rights are ever given") {
  for (const auto method : methods) {
    const auto line = text::join(make_command(settings_for(method), {"m"}).arguments, "\n") + "\n";
    CHECK(line.find("--tools\n\n") != std::string::npos);
    CHECK(line.find("--setting-sources\n\n") != std::string::npos);
    CHECK(line.find("--strict-mcp-config\n") != std::string::npos);
    CHECK(line.find("--permission-mode\ndefault\n") != std::string::npos);
    CHECK(line.find("bypass") == std::string::npos);
    CHECK(line.find("skip-permissions") == std::string::npos);
    CHECK(line.find("--allowedTools\nmcp__client\n") != std::string::npos);  // the client runs them
    CHECK(line.find("system-prompt") == std::string::npos);
  }
}

TEST_CASE("command: no client key is in it") {
  for (const auto method : methods) {
    const auto line = text::join(make_command(settings_for(method), {"m"}).arguments, " ");
    CHECK(line.find("client-key") == std::string::npos);
    CHECK(line.find("value of") == std::string::npos);
  }
}

TEST_CASE("profile: spares of one model are alike, of another they are not") {
  CHECK(launch_profile{"a"} == launch_profile{"a"});
  CHECK_FALSE(launch_profile{"a"} == launch_profile{"b"});
}

// ---- agents ------------------------------------------------------------------------------------

namespace {

agent_request some_agent() {
  agent_request agent;
  agent.tools = {"Bash", "Read"};
  agent.permission_mode = "acceptEdits";
  agent.directory = "/scratch/agents/me/work";
  agent.private_directory = "/scratch/agents/me";
  return agent;
}

/// What follows a flag; "none" when the flag is not there.
std::string value_of(const command& made, const std::string& flag) {
  const auto at = std::find(made.arguments.begin(), made.arguments.end(), flag);
  return at == made.arguments.end() || at + 1 == made.arguments.end() ? "none" : *(at + 1);
}

/// All arguments behind a flag, up to the next flag.
strings values_of(const command& made, const std::string& flag) {
  strings values;
  bool within = false;
  for (const auto& argument : made.arguments) {
    within = argument == flag || (within && argument.substr(0, 2) != "--");
    if (within && argument != flag) values.push_back(argument);
  }
  return values;
}

/// `child_environment` is sorted, so what differs is easily told: `-A -B +C=1`.
std::string difference(const environment_map& from, const environment_map& to) {
  std::string told;
  for (const auto& [name, value] : from) {
    if (to.count(name) == 0) told += "-" + name + " ";
  }
  for (const auto& [name, value] : to) {
    if (from.count(name) == 0) told += "+" + name + "=" + value + " ";
    if (from.count(name) != 0 && from.at(name) != value) told += "~" + name + " ";
  }
  return told;
}

}  // namespace

TEST_CASE("command: the flag that takes `--bare` back is passed where a login must be read") {
  const auto last = [](auth_method method, std::optional<agent_request> agent = std::nullopt) {
    return make_command(settings_for(method), {"m", std::move(agent)}, "--no-bare")
        .arguments.back();
  };
  CHECK(last(auth_method::cli) == "--no-bare");
  CHECK(last(auth_method::api_key, some_agent()) == "--no-bare");
  CHECK(last(auth_method::api_key) == "--bare");
}

TEST_CASE("agent command: the whole line") {
  auto settings = settings_for(auth_method::api_key);
  settings.max_budget_usd = 1.5;
  settings.agent_directories = {"/data", "/more data"};
  auto agent = some_agent();
  agent.disallowed = {"Bash(rm:*)", "WebFetch"};
  agent.max_turns = 7;
  agent.mcp_config = R"({"mcpServers":{}})";
  const strings expected = {"/opt/claude",
                            "-p",
                            "--input-format",
                            "stream-json",
                            "--output-format",
                            "stream-json",
                            "--verbose",
                            "--include-partial-messages",
                            "--model=sonnet",
                            "--tools",
                            "Bash,Read",
                            "--setting-sources",
                            "",
                            "--strict-mcp-config",
                            "--no-session-persistence",
                            "--disable-slash-commands",
                            "--permission-mode",
                            "acceptEdits",
                            "--allowedTools",
                            "mcp__client",
                            "Bash",
                            "Read",
                            "--disallowedTools",
                            "Bash(rm:*)",
                            "WebFetch",
                            "--max-turns",
                            "7",
                            "--max-budget-usd",
                            "1.5",
                            "--mcp-config",
                            "/dev/fd/3",
                            "--add-dir",
                            "/data",
                            "--add-dir",
                            "/more data"};
  const auto made = make_command(settings, {"sonnet", agent});
  CHECK(made.arguments == expected);
  CHECK(made.inherited == strings{agent.mcp_config, "value of ANTHROPIC_API_KEY"});
}

TEST_CASE("agent command: what is not limited is not told, and no login makes it bare") {
  for (const auto method : methods) {
    const auto made = make_command(settings_for(method), {"sonnet", some_agent()});
    for (const std::string flag : {"--max-turns", "--max-budget-usd", "--disallowedTools",
                                   "--mcp-config", "--add-dir", "--bare"}) {
      CAPTURE(flag);
      CHECK(std::count(made.arguments.begin(), made.arguments.end(), flag) == 0);
    }
  }
}

TEST_CASE(
    "agent command: rules name the tools that exist, each once, and servers' tools are none") {
  auto agent = some_agent();
  agent.tools = {"Bash(git:*)", "Bash(ls:*)", "Read", "mcp__files__read", "mcp__files"};
  const auto made = make_command(settings_for(auth_method::cli), {"sonnet", agent});
  CHECK(value_of(made, "--tools") == "Bash,Read");
  CHECK(values_of(made, "--allowedTools") == strings{"mcp__client", "Bash(git:*)", "Bash(ls:*)",
                                                     "Read", "mcp__files__read", "mcp__files"});
  agent.tools.clear();
  const auto toothless = make_command(settings_for(auth_method::cli), {"sonnet", agent});
  CHECK(value_of(toothless, "--tools").empty());
  CHECK(values_of(toothless, "--allowedTools") == strings{"mcp__client"});
}

TEST_CASE("agent command: a long task may be summed up, and servers' names stay apart") {
  for (const auto method : methods) {
    auto settings = settings_for(method);
    for (const char* secret : {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"}) {
      settings.environment.erase(secret);
    }
    const auto usual = child_environment(settings);
    CHECK(difference(usual, make_command(settings, {"m", some_agent()}).environment) ==
          "-CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE -DISABLE_COMPACT "
          "+CLAUDE_CODE_DISABLE_BACKGROUND_TASKS=1 "
          "+CLAUDE_CODE_TMPDIR=/scratch/agents/me/claude " +
              // What the CLI keeps is the client's own, but where its login is the user's.
              std::string(method == auth_method::cli ? "" : "~CLAUDE_CONFIG_DIR ") +
              "+MCP_CONNECTION_NONBLOCKING=0 ~TMPDIR ");
    CHECK(difference(usual, make_command(settings, {"m"}).environment) ==
          "+CLAUDE_AGENT_SDK_MCP_NO_PREFIX=1 +GIT_DIR=/dev/null ");
    CHECK(usual.at("ENABLE_TOOL_SEARCH") == "false");
    CHECK(usual.at("MAX_THINKING_TOKENS") == "0");
  }
}

TEST_CASE("agent command: it works in its own directory") {
  const auto settings = settings_for(auth_method::cli);
  auto agent = some_agent();
  agent.directory = "/projects/x";
  CHECK(make_command(settings, {"m", agent}).working_directory == "/projects/x");
}

TEST_CASE("command: nothing of what an operator grants to agents reaches another process") {
  auto settings = settings_for(auth_method::cli);
  const auto before = make_command(settings, {"m"});
  settings.max_budget_usd = 5;
  settings.max_turns = 5;
  settings.agent_directories = {"/data"};
  settings.agent_roots = {"/"};
  settings.allowed_tools = {"Bash"};
  settings.disallowed_tools = {"Read"};
  settings.permission_mode = "bypassPermissions";
  settings.mcp_config = "/etc/mcp.json";
  const auto after = make_command(settings, {"m"});
  CHECK(after.arguments == before.arguments);
  CHECK(after.environment == before.environment);
  CHECK(after.working_directory == before.working_directory);
}

TEST_CASE("profile: an agent's process serves only an agent that may do exactly the same") {
  using change = void (*)(agent_request&);
  const std::vector<change> changes = {[](agent_request& a) { a.tools = {"Bash"}; },
                                       [](agent_request& a) {
                                         a.tools = {"Read", "Bash"};
                                       },
                                       [](agent_request& a) { a.disallowed = {"Bash(rm:*)"}; },
                                       [](agent_request& a) { a.permission_mode = "plan"; },
                                       [](agent_request& a) { a.max_turns = 1; },
                                       [](agent_request& a) { a.directory = "/x"; },
                                       [](agent_request& a) { a.private_directory = "/x"; },
                                       [](agent_request& a) { a.mcp_config = "{}"; }};
  const launch_profile base{"m", some_agent()};
  for (const auto& each : changes) {
    auto agent = some_agent();
    each(agent);
    CHECK_FALSE(base == launch_profile{"m", agent});
  }
  auto showing = some_agent();
  showing.show_activity = true;
  CHECK(base == launch_profile{"m", showing});
  CHECK_FALSE(base == launch_profile{"m"});
  CHECK_FALSE(base == launch_profile{"n", some_agent()});
  CHECK_FALSE(launch_profile{"m", agent_request()} == launch_profile{"m"});
}
