// claude-openai: the command line of claude-openai.hpp. Flags, environment, signals.
#include "claude-openai.hpp"

#include <CLI/CLI.hpp>

#include <sys/resource.h>

#include <iostream>

namespace {

namespace proxy = claude_openai;

proxy::server* running = nullptr;

extern "C" void stop_running(int) {
  if (running != nullptr) running->stop();
}

/// A bare MAX_TIMEOUT of 10000 or more is milliseconds, as the Python wrapper's .env has it.
std::chrono::milliseconds parse_timeout(const std::string& value) {
  const auto bare = proxy::text::try_number<std::int64_t>(value);
  if (bare && *bare >= 10'000) return std::chrono::milliseconds(*bare);
  const auto timeout = proxy::try_duration(value);
  if (!timeout) throw CLI::ValidationError("--timeout", "'" + value + "' is not a duration");
  return *timeout;
}

proxy::logger make_logger(const std::string& level) {
  const auto& names = proxy::log_level_names;
  const auto found = std::find(names.begin(), names.end(), level);
  return proxy::logger(static_cast<proxy::log_level>(found - names.begin()),
                       [](proxy::log_level at, const std::string& line) {
                         const auto name = proxy::log_level_names.at(static_cast<std::size_t>(at));
                         std::cerr << proxy::text::iso_time(std::chrono::system_clock::now()) << ' '
                                   << name << ' ' << line << std::endl;
                       });
}

/// Flags, environment variables and defaults, in that order of precedence.
struct command_line {
  proxy::options settings;
  std::string timeout = "600s";
  std::string auth;
  std::string log_level = "info";
  std::vector<std::string> keys;
  bool no_builtin_tools = false;
  CLI::App app{"An OpenAI-compatible proxy over living `claude` processes.", "claude-openai"};

  command_line() {
    app.footer(
        "Every flag can be set by the environment variable named with it; a flag wins over it.\n"
        "Point any OpenAI client at http://127.0.0.1:8000/v1.");
    app.set_version_flag("--version", "claude-openai " CLAUDE_OPENAI_VERSION);
    add_server_options();
    add_claude_options();
    add_limits();
    add_sessions();
    add_agents();
  }

  void add_server_options() {
    app.add_option("--host", settings.host, "Address to listen on; beyond loopback a key is needed")
        ->envname("CLAUDE_WRAPPER_HOST")
        ->capture_default_str();
    app.add_option("port,--port", settings.port, "Port; 0 takes any free one")
        ->envname("PORT")
        ->check(CLI::Range(0, 65535))
        ->capture_default_str();
    app.add_option("--api-key", keys,
                   "Key that clients must present; repeatable [API_KEY, API_KEYS]")
        ->allow_extra_args(false)  // `--api-key KEY 9000`: the number is the port
        ->take_all();
    app.add_option("--log-level", log_level, "debug, info, warning, error or off")
        ->envname("LOG_LEVEL")
        ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}))
        ->capture_default_str();
    add_duration("--drain-timeout", settings.drain_timeout,
                 "How long running requests may take to finish after SIGTERM",
                 "CLAUDE_DRAIN_TIMEOUT");
  }

  void add_claude_options() {
    app.add_option("--auth-method", auth, "How claude reaches a model (default: detect)")
        ->envname("CLAUDE_AUTH_METHOD")
        ->check(CLI::IsMember(
            {"cli", "api_key", "bedrock", "vertex", "claude_cli", "anthropic", "detect"}));
    app.add_option("--claude-path", settings.claude_path, "The claude program (default: on PATH)")
        ->envname("CLAUDE_CLI_PATH");
    app.add_option("--cwd", settings.working_directory,
                   "Working directory of claude (default: a private temporary one)")
        ->envname("CLAUDE_CWD")
        ->check(CLI::ExistingDirectory);
    app.add_option("--model", settings.default_model, "Model of requests that name none")
        ->envname("DEFAULT_MODEL")
        ->capture_default_str();
    app.add_option("--spares", settings.spares, "claude processes kept ready")
        ->envname("CLAUDE_SPARES")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    app.add_option("--max-processes", settings.max_processes,
                   "Most claude processes at once (default: one per 250 MiB of memory, at most 32)")
        ->envname("CLAUDE_MAX_PROCESSES")
        ->check(CLI::Range(1, 1024));
  }

  void add_limits() {
    app.add_option("--timeout", timeout, "Longest time for one request: 90s, 10m, or seconds")
        ->envname("MAX_TIMEOUT")
        ->capture_default_str();
    app.add_option("--max-queue", settings.max_queue, "Requests that may wait for a process")
        ->envname("CLAUDE_MAX_QUEUE")
        ->check(CLI::Range(0, 100'000))
        ->capture_default_str();
    add_duration("--queue-timeout", settings.queue_timeout, "Longest wait for a process",
                 "CLAUDE_QUEUE_TIMEOUT");
    add_duration("--idle-timeout", settings.idle_timeout,
                 "How long a conversation's process waits for its next turn",
                 "CLAUDE_IDLE_TIMEOUT");
    app.add_option("--max-request-size", settings.max_body_bytes, "Largest request body in bytes")
        ->envname("MAX_REQUEST_SIZE")
        ->capture_default_str();
    app.add_flag("--strict", settings.strict,
                 "Refuse requests with fields that cannot be honoured, instead of naming them")
        ->envname("CLAUDE_STRICT");
  }

  void add_sessions() {
    add_duration("--session-ttl", settings.session_ttl, "How long an unused session is kept",
                 "CLAUDE_SESSION_TTL");
    app.add_option("--session-dir", settings.session_directory,
                   "Directory where sessions survive a restart (default: memory alone)")
        ->envname("CLAUDE_SESSION_DIR");
  }

  /// What clients may ask of Claude Code's own tools (`enable_tools`).
  void add_agents() {
    app.add_flag("--no-builtin-tools", no_builtin_tools,
                 "Never lend Claude Code's own tools to clients")
        ->envname("CLAUDE_NO_BUILTIN_TOOLS");
    add_list("--allowed-tools", settings.allowed_tools,
             "Tools that a client may ask for, with commas (default: all known ones)",
             "CLAUDE_ALLOWED_TOOLS")
        ->delimiter(',');
    add_list("--disallowed-tools", settings.disallowed_tools,
             "Tools or rules such as 'Bash(rm:*)' that no client gets, with commas",
             "CLAUDE_DISALLOWED_TOOLS")
        ->delimiter(',');
    app.add_option("--permission-mode", settings.permission_mode,
                   "The most that a client may ask for")
        ->envname("CLAUDE_PERMISSION_MODE")
        ->check(CLI::IsMember(std::vector<std::string>(proxy::permission_modes.begin(),
                                                       proxy::permission_modes.end())))
        ->capture_default_str();
    app.add_option("--max-turns", settings.max_turns,
                   "The most turns that a client may ask for; 0 for no limit")
        ->envname("CLAUDE_MAX_TURNS")
        ->check(CLI::Range(0, 1'000'000))
        ->capture_default_str();
    app.add_option("--max-budget-usd", settings.max_budget_usd,
                   "The most that one conversation's agent may cost; 0 for no limit")
        ->envname("CLAUDE_MAX_BUDGET_USD")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    add_agent_places();
  }

  void add_agent_places() {
    add_list("--add-dir", settings.agent_directories,
             "Directory that agents may use beside their own; repeatable", "CLAUDE_ADD_DIR")
        ->check(CLI::ExistingDirectory);
    add_list("--allowed-cwd", settings.agent_roots,
             "Directory in or below which a client may let its agent work; repeatable",
             "CLAUDE_ALLOWED_CWD")
        ->check(CLI::ExistingDirectory);
    app.add_option("--mcp-config", settings.mcp_config, "File with the MCP servers of agents")
        ->envname("CLAUDE_MCP_CONFIG")
        ->check(CLI::ExistingFile);
    app.add_flag("--allow-mcp-registration", settings.allow_mcp_registration,
                 "Let clients without a key register MCP servers, which run commands here")
        ->envname("CLAUDE_ALLOW_MCP_REGISTRATION");
  }

  CLI::Option* add_list(const char* flag, std::vector<std::string>& values, const char* help,
                        const char* variable) {
    return app.add_option(flag, values, help)
        ->envname(variable)
        ->allow_extra_args(false)
        ->take_all();
  }

  void add_duration(const char* flag, std::chrono::milliseconds& value, const char* help,
                    const char* variable) {
    app.add_option_function<std::string>(
           flag,
           [flag, &value](const std::string& given) {
             const auto duration = proxy::try_duration(given);
             if (!duration) throw CLI::ValidationError(flag, "'" + given + "' is not a duration");
             value = *duration;
           },
           help)
        ->envname(variable)
        ->default_str(std::to_string(value.count() / 1000) + "s");
  }

  proxy::options finish() {
    settings.environment = proxy::current_environment();
    settings.port_required = app.count("--port") > 0 || settings.environment.count("PORT") > 0;
    settings.auth = proxy::try_auth_method(auth).value_or(proxy::auth_method::detect);
    settings.timeout = parse_timeout(timeout);
    settings.log = make_logger(log_level);
    settings.builtin_tools = !no_builtin_tools;
    settings.api_keys = keys;
    if (keys.empty()) {
      const auto& variables = settings.environment;
      settings.api_keys = proxy::text::split(proxy::value_or(variables, "API_KEYS"), ',');
      const auto single = proxy::value_or(variables, "API_KEY");
      if (!single.empty()) settings.api_keys.push_back(single);
    }
    return settings;
  }
};

void print_start(const proxy::server& server, bool key_was_made) {
  const auto& settings = server.settings();
  const auto url = server.url();
  std::cout << "claude-openai " CLAUDE_OPENAI_VERSION " is listening on " << url << "\n"
            << "  OpenAI base URL    " << url << "/v1\n"
            << "  claude             " << settings.claude_path << "\n"
            << "  auth method        " << proxy::name_of(proxy::resolve_auth(settings)) << "\n"
            << "  working directory  " << settings.working_directory << "\n"
            << "  spares             " << settings.spares << "\n";
  if (key_was_made) {
    std::cout << "  client key         " << settings.api_keys.front()
              << "  (made for this run: the address is not loopback; set your own by --api-key)\n";
  } else if (settings.api_keys.empty()) {
    std::cout << "  client key         none: every user of this machine may use it (--api-key)\n";
  }
  const auto header = settings.api_keys.empty() ? std::string()
                      : key_was_made
                          ? " -H 'Authorization: Bearer " + settings.api_keys.front() + "'"
                          : std::string(" -H \"Authorization: Bearer $API_KEY\"");
  std::cout << "  try it             curl " << url << "/v1/chat/completions" << header
            << " -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Say hello\"}]}'" << std::endl;
}

void print_inspection(const proxy::server& server, const proxy::cli_facts& facts) {
  const auto missing = proxy::missing_credentials(server.settings());
  if (!facts.version.empty()) std::cout << "  claude version     " << facts.version << "\n";
  if (facts.problem.empty() && missing.empty()) {
    const char* login = facts.logged_in ? "valid" : "not known: claude did not tell it in time";
    std::cout << "  login              " << login << std::endl;
    return;
  }
  for (const auto& problem : missing) std::cout << "  login              " << problem << "\n";
  if (!facts.problem.empty()) std::cout << "  PROBLEM            " << facts.problem << "\n";
  std::cout << std::flush;
}

/// A process, a queued request and a connection each take some descriptors; the usual 1024 are few.
void allow_many_descriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 65'536);
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

int serve(const proxy::options& settings) {
  allow_many_descriptors();
  proxy::server server(settings);
  server.bind();
  if (settings.port != 0 && server.port() != settings.port) {
    std::cout << "port " << settings.port << " is busy; using " << server.port() << " instead\n";
  }
  std::atomic<bool> refused{false};
  server.on_inspected = [&](const proxy::cli_facts& facts) {
    print_inspection(server, facts);
    if (!facts.too_old) return;
    refused = true;
    server.stop();
  };
  running = &server;
  std::signal(SIGINT, stop_running);
  std::signal(SIGTERM, stop_running);
  print_start(server, settings.api_keys.empty() && !server.settings().api_keys.empty());
  server.run();
  running = nullptr;  // a further signal changes nothing: all that is left is to clean up
  return refused ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  command_line line;
  try {
    line.app.parse(argc, argv);
    return serve(line.finish());
  } catch (const CLI::ParseError& wrong) {
    return line.app.exit(wrong);
  } catch (const std::exception& failure) {
    std::cerr << "claude-openai: " << failure.what() << std::endl;
    return 1;
  }
}
