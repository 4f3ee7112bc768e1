// claude-openai: the command line of claude-openai.hpp. Flags, environment, files of settings,
// signals.
#include "claude-openai.hpp"

#include <CLI/CLI.hpp>

#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <atomic>
#include <chrono>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <new>
#include <numeric>
#include <sstream>

/// The commit that was built. The Makefile links a definition that replaces this weak one, so that a
/// new commit does not compile all of this again.
[[gnu::weak]] extern const char claude_openai_commit[] = "unknown";

namespace {

namespace proxy = claude_openai;

// Signal handlers read these, in whatever thread the system picks.
std::atomic<proxy::server*> running{nullptr};
std::atomic<bool> has_terminal{false};
static_assert(decltype(running)::is_always_lock_free &&
              decltype(has_terminal)::is_always_lock_free);

extern "C" void stop_running(int) {
  if (proxy::server* const server = running) server->stop();
}

/// The kernel sends SIGHUP too when the terminal is closed that the proxy was started in.
extern "C" void reload_running(int) {
  proxy::server* const server = running;
  if (server == nullptr) return;
  if (has_terminal && ::tcgetpgrp(STDIN_FILENO) < 0) {
    server->stop();
  } else {
    server->request_reload();
  }
}

extern "C" void interrupt_prompt(int) {}

/// The exit status for a command line or a setting that is wrong; 1 is for all that fails later.
constexpr int wrong_settings = 2;

/// Accepts the reference wrapper's names too: `claude_cli`, `anthropic`.
std::optional<proxy::auth_method> try_auth_method(std::string_view name) {
  const auto lower = proxy::text::to_lower(proxy::text::trim(name));
  if (lower == "cli" || lower == "claude_cli") return proxy::auth_method::cli;
  if (lower == "api_key" || lower == "anthropic") return proxy::auth_method::api_key;
  if (lower == "bedrock") return proxy::auth_method::bedrock;
  if (lower == "vertex") return proxy::auth_method::vertex;
  if (lower.empty() || lower == "detect") return proxy::auth_method::detect;
  return std::nullopt;
}

/// The value of a `.env` line, its quotes and comment taken off; nullopt for a quote that is open.
std::optional<std::string> try_env_value(std::string_view given) {
  const char quote = given.empty() ? '\0' : given.front();
  if (quote != '"' && quote != '\'') {
    const auto comment = std::min(given.find(" #"), given.size());
    return std::string(proxy::text::trim(given.substr(0, comment)));
  }
  std::string value;
  for (std::size_t i = 1; i < given.size(); ++i) {
    if (given[i] == quote) {
      const auto rest = proxy::text::trim(given.substr(i + 1));
      return rest.empty() || rest.front() == '#' ? std::optional<std::string>(value) : std::nullopt;
    }
    const bool escaped = quote == '"' && given[i] == '\\' && i + 1 < given.size();
    if (escaped) ++i;
    value += !escaped ? given[i] : given[i] == 'n' ? '\n' : given[i] == 't' ? '\t' : given[i];
  }
  return std::nullopt;
}

/// Variables of a `.env` file: `NAME=value` lines, perhaps after `export`; `#` begins a comment,
/// `'...'` is taken as it is, `"..."` knows \n, \t, \" and \\. Throws `std::invalid_argument` with
/// the number of a line that is none of this.
proxy::environment_map parse_env_file(std::string_view content) {
  proxy::environment_map variables;
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  if (proxy::text::starts_with(content, byte_order_mark))
    content.remove_prefix(byte_order_mark.size());
  for (std::size_t number = 1; !content.empty(); ++number) {
    const auto end = std::min(content.find('\n'), content.size());
    auto line = proxy::text::trim(content.substr(0, end));
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.empty() || line.front() == '#') continue;
    if (proxy::text::starts_with(line, "export ")) line = proxy::text::trim(line.substr(7));
    const auto equals = std::min(line.find('='), line.size());
    const auto name = proxy::text::trim(line.substr(0, equals));
    const bool named = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return c == '_' || std::isalnum(static_cast<unsigned char>(c)) != 0;
    });
    const auto value = equals == line.size()
                           ? std::nullopt
                           : try_env_value(proxy::text::trim(line.substr(equals + 1)));
    if (!named || !value) {
      throw std::invalid_argument("line " + std::to_string(number) + " is not NAME=value");
    }
    variables[std::string(name)] = *value;
  }
  return variables;
}

/// A list as a JSON array of strings, or with commas. Throws `std::invalid_argument` for an array
/// of anything else.
std::vector<std::string> parse_list(std::string_view value) {
  value = proxy::text::trim(value);
  if (!proxy::text::starts_with(value, "[")) return proxy::text::split(value, ',');
  const auto array = proxy::try_parse_json(value);
  if (!array.is_array()) throw std::invalid_argument("this is no JSON array");
  std::vector<std::string> items;
  for (const auto& item : array) {
    if (!item.is_string()) throw std::invalid_argument("this is no array of strings");
    items.push_back(item.get<std::string>());
  }
  return items;
}

/// Puts in one more budget, as `requests=100/minute`, `tokens=1000000/day` or `usd=2.5/day`. False
/// when it is no such thing.
bool add_budget(proxy::options& settings, std::string_view given) {
  const auto equals = given.find('=');
  const auto slash = given.find('/');
  if (equals == std::string_view::npos || slash == std::string_view::npos || slash < equals) {
    return false;
  }
  const auto kind = given.substr(0, equals);
  const auto amount = given.substr(equals + 1, slash - equals - 1);
  const auto span = given.substr(slash + 1);
  if (span != "minute" && span != "day") return false;
  auto& budget = span == "minute" ? settings.minute_budget : settings.day_budget;
  const auto whole = proxy::text::try_number<std::int64_t>(amount);
  if (kind == "usd") budget.usd = proxy::text::try_decimal(amount).value_or(-1);
  if (kind == "requests") budget.requests = whole.value_or(-1);
  if (kind == "tokens") budget.tokens = whole.value_or(-1);
  const bool known = kind == "usd" || kind == "requests" || kind == "tokens";
  return known && budget.usd >= 0 && budget.requests >= 0 && budget.tokens >= 0;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::invalid_argument(path + " cannot be read");
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

/// A bare MAX_TIMEOUT of 10000 or more is milliseconds, as the Python wrapper's .env has it.
std::chrono::milliseconds parse_timeout(const std::string& value) {
  const auto bare = proxy::text::try_number<std::int64_t>(value);
  if (bare && *bare >= 10'000) return std::chrono::milliseconds(*bare);
  const auto timeout = proxy::try_duration(value);
  if (!timeout) throw CLI::ValidationError("--timeout", "'" + value + "' is not a duration");
  return *timeout;
}

proxy::log_level parse_level(const std::string& name) {
  const auto& names = proxy::log_level_names;
  return static_cast<proxy::log_level>(std::find(names.begin(), names.end(), name) - names.begin());
}

/// Writes as much as can be written without waiting. False when that was not all.
bool write_without_waiting(std::string_view bytes) {
  while (!bytes.empty()) {
    pollfd entry{STDERR_FILENO, POLLOUT, 0};
    if (::poll(&entry, 1, 0) <= 0) return false;
    const ssize_t count =
        ::write(STDERR_FILENO, bytes.data(), std::min<std::size_t>(bytes.size(), 512));
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

/// A line for the log. When nobody reads it, lines are left out rather than requests held up; their
/// number is told, as `render` tells things, once somebody does.
void write_log(const std::string& line,
               std::string (*render)(proxy::log_level, const std::string& message)) {
  static std::size_t lost = 0;  // the logger calls one at a time
  static bool cut = false;      // the last line was not written to its end
  std::string out = cut ? "\n" : "";
  if (lost > 0) {
    out += render(proxy::log_level::warning,
                  std::to_string(lost) + " lines of the log were lost: nobody read it") +
           "\n";
  }
  if (write_without_waiting(out + line + "\n")) {
    lost = 0;
    cut = false;
  } else {
    ++lost;
    cut = true;
  }
}

proxy::logger make_logger(proxy::log_level level, bool as_objects) {
  using proxy::log_level;
  if (!as_objects) {
    return {level, [](log_level at, const std::string& line) {
              write_log(proxy::render_log_text(at, line), proxy::render_log_text);
            }};
  }
  const auto write = [](log_level, const std::string& object) {
    write_log(object, [](log_level at, const std::string& message) {
      return proxy::render_log_object(at, message);
    });
  };
  return {level, write, proxy::log_format::object};
}

/// FILE or DIR where the value of a flag is one, else its type; empty for a flag without a value.
std::string value_name(const CLI::Option& option) {
  const auto words = proxy::text::split(option.get_type_name(), ':');  // `TEXT:FILE`
  if (words.empty() || option.get_type_size() == 0) return {};
  const bool is_path = words.back() == "FILE" || words.back() == "DIR";
  return is_path ? words.back() : words.front();
}

/// The values that a flag takes, where they are few: `{text,json}` of its type.
std::vector<std::string> choices_of(const CLI::Option& option) {
  const auto type = option.get_type_name();
  const auto open = type.find('{');
  if (open == std::string::npos) return {};
  return proxy::text::split(type.substr(open + 1, type.find('}') - open - 1), ',');
}

/// What a flag does, its default and its variable.
std::string describe(const CLI::Option& option) {
  const auto standard = value_name(option).empty() ? "" : option.get_default_str();
  const auto variable = option.get_envname();
  return option.get_description() + (standard.empty() ? "" : " (default: " + standard + ")") +
         (variable.empty() ? "" : " [" + variable + "]");
}

/// A flag as the help lists it and a shell completes it.
struct flag_entry {
  std::string name;   ///< with its dashes
  std::string value;  ///< FILE, DIR or another type; empty for none
  std::vector<std::string> choices;
  std::string description;
};

/// Those of a command are its own: newer versions of the library list the program's among them.
std::vector<flag_entry> flags_of(const CLI::App& app) {
  std::vector<flag_entry> flags;
  const auto* parent = app.get_parent();
  for (const auto* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) {
      if (parent != nullptr && parent->get_option_no_throw("--" + name) != nullptr) continue;
      flags.push_back(
          {"--" + name, value_name(*option), choices_of(*option), option->get_description()});
    }
  }
  return flags;
}

/// The words that may follow a command.
std::vector<std::string> words_of(const CLI::App& command) {
  std::vector<std::string> words;
  for (const auto* option : command.get_options()) {
    if (!option->get_positional()) continue;
    for (auto& choice : choices_of(*option)) words.push_back(std::move(choice));
  }
  return words;
}

/// `--help` in 100 columns: of each flag its value, what it does, its default and its variable.
class help_formatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode) const override {
    auto help = app->get_description() + "\n\nUsage: " + name + " [FLAGS] [PORT] [COMMAND]\n";
    for (const auto& group : app->get_groups()) {
      help += "\n" + group + ":\n";
      for (const auto* option : app->get_options()) {
        if (option->get_group() == group) help += make_option(option, false);
      }
    }
    help += "\nCommands:\n";
    for (const auto* command : app->get_subcommands({})) {
      const auto* word = words_of(*command).empty() ? "" : " [CLIENT]";
      help += make_row(command->get_name() + word, command->get_description());
      for (const auto& flag : flags_of(*command)) {
        const auto value = flag.value.empty() ? "" : " " + flag.value;
        help += make_row("  " + flag.name + value, flag.description);
      }
    }
    return help + "\n" + app->get_footer() + "\n";
  }

  std::string make_option(const CLI::Option* option, bool) const override {
    const auto names = option->get_name(false, true);  // `--rate-limit,--no-rate-limit{false}`
    const auto value = value_name(*option);
    return make_row(names.substr(0, names.find('{')) + (value.empty() ? "" : " " + value),
                    describe(*option));
  }

 private:
  static std::string make_row(const std::string& name, const std::string& description) {
    constexpr std::size_t column = 32;
    constexpr std::size_t width = 100;
    std::string rows;
    auto row = "  " + name;
    const auto finish_row = [&] {
      rows += row + "\n";
      row.clear();
    };
    if (row.size() >= column) finish_row();
    row.resize(column - 1, ' ');
    for (const auto& word : proxy::text::split(description, ' ')) {
      if (row.size() + 1 + word.size() > width) finish_row();
      row.resize(std::max(row.size(), column - 1), ' ');
      row += ' ' + word;
    }
    finish_row();
    return rows;
  }
};

/// How many letters must be added, removed or replaced to make `to` of `from`.
std::size_t edit_distance(std::string_view from, std::string_view to) {
  std::vector<std::size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < from.size(); ++i) {
    auto corner = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < to.size(); ++j) {
      const auto replaced = corner + (from[i] == to[j] ? 0 : 1);
      corner = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// The command or flag whose name is most like the word; empty when none is like it.
std::string suggest(const CLI::App& app, std::string_view word) {
  std::vector<std::string> names;
  const auto add_flags = [&](const CLI::App& of) {
    for (const auto* option : of.get_options()) {
      for (const auto& name : option->get_lnames()) names.push_back("--" + name);
    }
  };
  add_flags(app);
  for (const auto* command : app.get_subcommands({})) {
    if (!command->get_group().empty()) names.push_back(command->get_name());
    add_flags(*command);
  }
  const auto without_dashes = [](std::string_view name) {
    return name.substr(std::min(name.find_first_not_of('-'), name.size()));
  };
  const auto wanted = without_dashes(word);
  std::string best;
  std::size_t closest = std::min<std::size_t>(3, wanted.size());
  for (const auto& name : names) {
    const auto distance = edit_distance(wanted, without_dashes(name));
    if (distance < closest) best = name;
    closest = std::min(closest, distance);
  }
  return best;
}

/// Names the first word of the command line that is none of the program's, and never the value of
/// a flag: that may be a secret.
CLI::ParseError unknown_word(const CLI::App& app) {
  const auto words = app.remaining(true);
  const auto word = words.front().substr(0, words.front().find('='));
  if (proxy::text::try_number<std::int64_t>(word)) {
    return {"unexpected '" + word + "': a port is one number between 0 and 65535",
            CLI::ExitCodes::ExtrasError};
  }
  const auto meant = suggest(app, word);
  return {std::string("unknown ") + (word.front() == '-' ? "flag" : "command") + " '" + word + "'" +
              (meant.empty() ? "" : "; did you mean `" + meant + "`?"),
          CLI::ExitCodes::ExtrasError};
}

bool is_true(const std::string& value) {
  const auto lower = proxy::text::to_lower(value);
  return lower == "true" || lower == "1" || lower == "yes" || lower == "on";
}

/// Where a user's own settings are, and a made key is kept; empty where no home directory is known.
std::string user_file(const proxy::environment_map& variables) {
  const auto home = proxy::value_or(variables, "HOME");
  return home.empty() ? home : home + "/.config/claude-openai.env";
}

/// The address of a proxy as others are made of it: without the `/v1` that OpenAI clients add.
std::string base_of(std::string url) {
  const auto strip = [&url](std::string_view end) {
    if (proxy::text::ends_with(url, end)) url.resize(url.size() - end.size());
  };
  strip("/");
  strip("/v1");
  strip("/");
  for (const auto* scheme : {"http://", "https://", "unix:"}) {
    if (proxy::text::starts_with(url, scheme) && url != scheme) return url;
  }
  throw CLI::ValidationError("'" + url + "' is no address such as http://127.0.0.1:8000");
}

/// The newest Claude Code that the tests run with; the oldest is the oldest that is accepted.
constexpr auto newest_tested_cli = "2.1.330";

/// What `--version` prints. The first line begins with the name and the version.
std::string about_this_build() {
#ifdef CPPHTTPLIB_OPENSSL_SUPPORT
  const std::string tls = OPENSSL_VERSION_TEXT;
#else
  const std::string tls = "none, so no --tls-cert; a build from source has it";
#endif
  std::string store =
      "none, so no --store and no --session-dir; a build with SQLite and OpenSSL has it";
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT) && defined(CLAUDE_OPENAI_SQLITE)
  store = "SQLite " SQLITE_VERSION;
#endif
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT) && defined(CLAUDE_OPENAI_REDIS)
  store += ", Redis by hiredis " + std::to_string(HIREDIS_MAJOR) + "." +
           std::to_string(HIREDIS_MINOR) + "." + std::to_string(HIREDIS_PATCH);
#ifdef CLAUDE_OPENAI_REDIS_TLS
  store += " with TLS";
#else
  store += " without TLS";
#endif
#endif
  const auto& [major, minor, patch] = proxy::oldest_cli;
  const auto oldest =
      std::to_string(major) + '.' + std::to_string(minor) + '.' + std::to_string(patch);
  return std::string("claude-openai " CLAUDE_OPENAI_VERSION " (commit ") + claude_openai_commit +
         ")\nTLS: " + tls + "\nStore: " + store + "\nClaude Code: tested with " + oldest + " to " +
         newest_tested_cli;
}

/// The flags, and what they set.
struct command_line {
  proxy::options settings;
  std::string timeout = "600s";
  std::string auth;
  std::string log_level = "info";
  std::string log_format = "text";
  std::string sandbox = "auto";
  std::string env_file;
  std::string config_file;
  std::vector<std::string> keys;
  std::vector<std::string> origins;
  std::vector<std::string> budgets;
  std::vector<std::string> aliases;
  bool rate_limit = false;
  bool no_process_reuse = false;
  bool no_builtin_tools = false;
  bool no_extra_usage = false;
  std::string fallback;
  bool no_tcp = false;
  bool no_prompt = false;
  bool generate_key = false;
  bool print_config = false;
  bool demo = false;
  std::string program;  ///< the path of this program
  CLI::App app{"An OpenAI- and Anthropic-compatible proxy backed by long-running claude processes.",
               "claude-openai"};
  CLI::App* doctor = nullptr;
  bool security = false;
  CLI::App* connect = nullptr;
  std::string client;
  bool write = false;
  bool yes = false;
  CLI::App* usage = nullptr;
  std::string usage_by = "day";
  std::string usage_from;
  std::string url;         ///< of a running proxy; empty for this one's own
  std::string client_key;  ///< for it

  /// `reads_config` false: only the flags themselves are wanted.
  explicit command_line(bool reads_config) {
    app.formatter(std::make_shared<help_formatter>());
    app.footer(
        "Every flag can be set by the environment variable in brackets, in a file .env, in\n"
        "~/.config/claude-openai.env, or in the file of --config. Precedence: flag > environment "
        ">\n"
        ".env > ~/.config/claude-openai.env > --config file > default. Of a flag that is given\n"
        "twice the last value counts.\n"
        "Point any OpenAI client at http://127.0.0.1:8000/v1, any Anthropic client at\n"
        "http://127.0.0.1:8000.");
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.validate_positionals();  // a word that is no port is a command
    begin_group("Help and files of settings");
    app.get_help_ptr()->description("Show this help and end")->group("Help and files of settings");
    app.set_version_flag("--version", about_this_build, "Show the version and end");
    add_commands();
    app.add_subcommand("help", "Show this help")->callback([] { throw CLI::CallForHelp(); });
    add_settings_files(reads_config);
    add_transport();
    add_access();
    add_rate_limits();
    add_accounts();
    add_claude_options();
    add_limits();
    add_sessions();
    add_agents();
    add_log_options();
  }

  void add_commands() {
    doctor = app.add_subcommand("doctor", "Check everything that answers need");
    doctor->fallthrough();
    doctor->add_flag("--security", security, "Say what the settings leave open");
    add_proxy_flags(*doctor, "Check a running proxy instead, from outside, with real answers");
    doctor->get_option("--url")->excludes("--security");
    doctor->get_option("--key")->needs("--url");
    connect = app.add_subcommand(
        "connect",
        "Print the settings that make a client use the proxy and its --model, or list the clients");
    connect->fallthrough();
    std::vector<std::string> names;
    for (const auto& recipe : proxy::client_recipes) names.push_back(recipe.name);
    connect->add_option("client", client, "The client")->check(CLI::IsMember(names));
    auto* into_file = connect->add_flag("--write", write, "Put them into the client's own file");
    connect->add_flag("--yes", yes, "Do not ask before that")->needs(into_file);
    add_proxy_flags(*connect, "The proxy's address (default: this machine's)");
    usage = app.add_subcommand("usage", "Print what the answers of a running proxy have used");
    usage->fallthrough();
    usage->add_option("--by", usage_by, "A line for each day, key, model, dialect or account")
        ->check(CLI::IsMember({"day", "key", "model", "dialect", "account"}))
        ->capture_default_str();
    usage->add_option("--from", usage_from, "First day, as 2026-11-30 (default: all, 90 days)")
        ->type_name("DAY");
    add_proxy_flags(*usage, "The proxy's address (default: this machine's)");
  }

  /// Which proxy a command is about.
  void add_proxy_flags(CLI::App& command, const char* help) {
    command.add_option("--url", url, help)->type_name("URL")->transform(base_of);
    command.add_option("--key", client_key, "Client key of that proxy [CLAUDE_OPENAI_KEY]")
        ->type_name("KEY");
  }

  /// The flags that are added next stand under this heading in the help.
  void begin_group(const char* heading) { app.option_defaults()->group(heading); }

  void add_settings_files(bool reads_config) {
    constexpr const char* help = "File with settings, as `port = 9000` (TOML)";
    if (reads_config) {
      app.set_config("--config", "", help)->take_last();
      app.allow_config_extras(CLI::config_extras_mode::error);
    } else {
      app.add_option("--config", config_file, help)->type_name("FILE");
    }
    app.add_option("--env-file", env_file,
                   "File with variables, NAME=value; the environment wins (default: .env and "
                   "~/.config/claude-openai.env, if any)")
        ->type_name("FILE");
    app.add_flag("--print-config", print_config,
                 "Say what every setting is and where it comes from, and end");
  }

  void add_transport() {
    begin_group("Address and transport");
    app.add_option("--host", settings.host, "Address to listen on; beyond loopback a key is needed")
        ->envname("CLAUDE_WRAPPER_HOST")
        ->capture_default_str();
    app.add_option("port,--port", settings.port, "Port, or just the number; 0 takes any free one")
        ->envname("PORT")
        ->check(CLI::Range(0, 65535))
        ->capture_default_str();
    app.add_option("--tls-cert", settings.tls_certificate,
                   "Certificate with its chain (PEM): speak HTTPS")
        ->envname("TLS_CERT")
        ->check(CLI::ExistingFile);
    app.add_option("--tls-key", settings.tls_key, "The certificate's key (PEM)")
        ->envname("TLS_KEY")
        ->check(CLI::ExistingFile);
    app.add_option("--unix-socket", settings.unix_socket,
                   "Path of a socket to listen on beside the port, for this user alone")
        ->envname("CLAUDE_UNIX_SOCKET")
        ->type_name("FILE");
    app.add_flag("--no-tcp", no_tcp, "Listen on the unix socket only")->envname("CLAUDE_NO_TCP");
    app.add_flag("--ollama", settings.ollama,
                 "Listen at 127.0.0.1:11434 too, where Ollama's clients look")
        ->envname("CLAUDE_OLLAMA");
    app.add_option("--max-connections", settings.max_connections,
                   "Most connections at once; then the one that is silent longest is closed")
        ->envname("CLAUDE_MAX_CONNECTIONS")
        ->check(CLI::Range(1, 100'000))
        ->capture_default_str();
  }

  void add_access() {
    begin_group("Who may ask");
    app.add_option("--api-key", keys,
                   "Key that clients must present; repeatable [API_KEY, API_KEYS]")
        ->allow_extra_args(false)  // `--api-key KEY 9000`: the number is the port
        ->take_all();
    app.add_flag("--generate-key", generate_key,
                 "Make a client key for this run; a terminal shows it, else a file holds it");
    app.add_flag("--no-prompt", no_prompt, "Never ask on the terminal whether to make a key")
        ->envname("CLAUDE_NO_PROMPT");
    add_list("--cors-origin", origins,
             "Origin whose pages may ask, beside this machine's; repeatable; * for all",
             "CORS_ORIGINS");
    add_list("--trusted-proxy", settings.trusted_proxies,
             "Address or network (10.0.0.0/8) whose X-Forwarded-For is believed; repeatable",
             "TRUSTED_PROXIES")
        ->delimiter(',');
  }

  void add_rate_limits() {
    begin_group("How often and how much a client may ask");
    add_list("--budget", budgets,
             "What one key may use, as requests=100/minute, tokens=1000000/day or usd=2.5/day; "
             "repeatable",
             "CLAUDE_BUDGET")
        ->delimiter(',');
    app.add_flag("--rate-limit,!--no-rate-limit", rate_limit,
                 "Limit requests a minute (default: only beyond loopback)")
        ->envname("RATE_LIMIT_ENABLED");
    auto& limits = settings.limits;
    add_rate("--rate-limit-chat", limits.chat, "questions to the model",
             "RATE_LIMIT_CHAT_PER_MINUTE");
    add_rate("--rate-limit-debug", limits.debug, "requests to /v1/debug",
             "RATE_LIMIT_DEBUG_PER_MINUTE");
    add_rate("--rate-limit-auth", limits.auth, "requests to /v1/auth",
             "RATE_LIMIT_AUTH_PER_MINUTE");
    add_rate("--rate-limit-session", limits.session,
             "requests to /v1/sessions and /v1/responses/ID", "RATE_LIMIT_SESSION_PER_MINUTE");
    add_rate("--rate-limit-health", limits.health, "requests to /health and /version",
             "RATE_LIMIT_HEALTH_PER_MINUTE");
    add_rate("--rate-limit-other", limits.other, "other requests", "RATE_LIMIT_PER_MINUTE");
  }

  void add_rate(const char* flag, int& limit, const char* what, const char* variable) {
    app.add_option(flag, limit, std::string("Most ") + what + ", per address and per key")
        ->envname(variable)
        ->check(CLI::Range(0, 1'000'000))
        ->capture_default_str();
  }

  /// Who is billed.
  void add_accounts() {
    begin_group("The account");
    app.add_option("--auth-method", auth,
                   "How claude reaches a model: cli, api_key, bedrock or vertex (default: detect)")
        ->envname("CLAUDE_AUTH_METHOD")
        ->check(CLI::IsMember(
            {"cli", "api_key", "bedrock", "vertex", "claude_cli", "anthropic", "detect"},
            CLI::ignore_case));
    app.add_option("--fallback", fallback,
                   "Account that answers while the login's plan is used up: api_key, bedrock or "
                   "vertex")
        ->envname("CLAUDE_FALLBACK")
        ->check(CLI::IsMember({"api_key", "bedrock", "vertex"}, CLI::ignore_case));
    app.add_option("--fallback-model", settings.fallback_model,
                   "Model of that account's answers (default: the request's)")
        ->envname("CLAUDE_FALLBACK_MODEL");
    app.add_flag("--web", settings.web,
                 "Let clients have the API search the web; it bills each search")
        ->envname("CLAUDE_WEB");
    app.add_flag("--no-extra-usage", no_extra_usage,
                 "Refuse requests while a subscription would bill them beyond its plan")
        ->envname("CLAUDE_NO_EXTRA_USAGE");
    app.add_option(
           "--plan-price", settings.plan_price,
           "What the login's plan costs in USD a month, for `usage` to show beside the list "
           "price")
        ->envname("CLAUDE_PLAN_PRICE")
        ->type_name("USD")
        ->check(CLI::NonNegativeNumber);
  }

  void add_claude_options() {
    begin_group("The model and its processes");
    app.add_option("--claude-path", settings.claude_path, "The claude program (default: on PATH)")
        ->envname("CLAUDE_CLI_PATH")
        ->type_name("FILE");
    app.add_option("--cwd", settings.working_directory,
                   "Working directory of claude (default: a private temporary one)")
        ->envname("CLAUDE_CWD")
        ->check(CLI::ExistingDirectory);
    app.add_option("--model", settings.default_model, "Model of requests that name none")
        ->envname("DEFAULT_MODEL")
        ->capture_default_str();
    add_list(
        "--alias", aliases,
        "A model under another name, or names by a pattern, as 'gpt-*=sonnet'; repeatable, the "
        "first that fits counts",
        "CLAUDE_ALIASES")
        ->delimiter(',');
    app.add_option("--spares", settings.spares, "claude processes kept ready")
        ->envname("CLAUDE_SPARES")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    app.add_flag("--no-process-reuse", no_process_reuse,
                 "A claude process serves one conversation, and takes no message back")
        ->envname("CLAUDE_NO_PROCESS_REUSE");
    app.add_option("--max-processes", settings.max_processes,
                   "Most claude processes at once (default: one per 250 MiB of memory, at most 32)")
        ->envname("CLAUDE_MAX_PROCESSES")
        ->check(CLI::Range(1, 1024));
    app.add_flag("--demo", demo,
                 "Answer from a built-in stand-in: no account, no network, no claude")
        ->envname("CLAUDE_DEMO");
  }

  void add_limits() {
    begin_group("Times and sizes");
    app.add_option("--timeout", timeout, "Longest time for one request: 90s, 10m, or seconds")
        ->envname("MAX_TIMEOUT")
        ->type_name("TIME")
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
    add_duration("--drain-timeout", settings.drain_timeout,
                 "How long running requests may take to finish after SIGTERM",
                 "CLAUDE_DRAIN_TIMEOUT");
    app.add_option("--max-request-size", settings.max_body_bytes, "Largest request body in bytes")
        ->envname("MAX_REQUEST_SIZE")
        ->capture_default_str();
    app.add_flag("--strict", settings.strict,
                 "Refuse requests with fields that cannot be honoured, instead of naming them")
        ->envname("CLAUDE_STRICT");
  }

  void add_sessions() {
    begin_group("Sessions");
    add_duration("--session-ttl", settings.session_ttl, "How long an unused session is kept",
                 "CLAUDE_SESSION_TTL");
    app.add_option("--store", settings.store,
                   "Where sessions, responses, budgets and usage survive a restart: a file, or "
                   "redis://[user:password@]host:port/db for several proxies, rediss:// with TLS "
                   "(default: memory alone)")
        ->envname("CLAUDE_STORE")
        ->type_name("FILE|URL");
    app.add_option("--session-dir", settings.session_directory,
                   "The same as --store DIR/claude-openai.sqlite")
        ->envname("CLAUDE_SESSION_DIR")
        ->type_name("DIR");
  }

  /// What clients may ask of Claude Code's own tools (`enable_tools`).
  void add_agents() {
    begin_group("Claude Code's own tools");
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
                   "The most that a client may ask for: plan, dontAsk, default, acceptEdits or "
                   "bypassPermissions")
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
                 "Let clients register MCP servers, which are commands that run here")
        ->envname("CLAUDE_ALLOW_MCP_REGISTRATION");
    app.add_option("--sandbox", sandbox,
                   "Confine agents to their directories: auto, as far as this machine can; on; off")
        ->envname("CLAUDE_SANDBOX")
        ->check(CLI::IsMember({"auto", "on", "off"}))
        ->capture_default_str();
    app.add_flag("--sandbox-network", settings.sandbox_network,
                 "Let agents' commands in the sandbox reach the network")
        ->envname("CLAUDE_SANDBOX_NETWORK");
    app.add_flag("--allow-keyless-tools", settings.allow_keyless_tools,
                 "Lend tools without a key also where the system does not tell which user asks")
        ->envname("CLAUDE_ALLOW_KEYLESS_TOOLS");
  }

  void add_log_options() {
    begin_group("Log");
    app.add_option("--log-level", log_level, "debug, info, warning, error or off")
        ->envname("LOG_LEVEL")
        ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}))
        ->capture_default_str();
    app.add_option("--log-format", log_format, "text, or json: an object in each line")
        ->envname("LOG_FORMAT")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    app.add_flag("--log-bodies", settings.log_bodies,
                 "Log requests and answers too, at the level debug")
        ->envname("LOG_BODIES");
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
        ->type_name("TIME")
        ->default_str(std::to_string(value.count() / 1000) + "s");
  }

  /// This program again, in place of `claude`; it needs no login.
  void use_demo() {
    proxy::demo::set_up(settings, program);
    const auto pace = proxy::value_or(settings.environment, "CLAUDE_DEMO_PACE");
    if (!pace.empty()) settings.claude_arguments.push_back("--pace=" + pace);
  }

  /// The variables of the flags, taken off them: the library would let a file win over them.
  std::map<std::string, std::vector<std::string>> take_variables() {
    std::map<std::string, std::vector<std::string>> taken{{"api-key", {"API_KEY", "API_KEYS"}}};
    for (auto* option : app.get_options()) {
      if (option->get_envname().empty()) continue;
      taken[option->get_lnames().front()].push_back(option->get_envname());
      option->envname("");
    }
    return taken;
  }

  /// Completes `settings` by what was parsed, and by the variables that it was read with.
  void finish(const proxy::environment_map& variables) {
    settings.environment = variables;
    settings.port_required = app.count("--port") > 0;
    settings.auth = try_auth_method(auth).value_or(proxy::auth_method::detect);
    settings.timeout = parse_timeout(timeout);
    settings.builtin_tools = !no_builtin_tools;
    settings.extra_usage = !no_extra_usage;
    if (!fallback.empty()) settings.fallback = try_auth_method(fallback);
    settings.reuse_processes = !no_process_reuse;
    settings.sandbox = sandbox == "on"    ? proxy::sandbox_use::on
                       : sandbox == "off" ? proxy::sandbox_use::off
                                          : proxy::sandbox_use::automatic;
    settings.tcp = !no_tcp;
    if (app.count("--rate-limit") > 0) settings.limits.enabled = rate_limit;
    settings.log = make_logger(parse_level(log_level), log_format == "json");
    if (demo) use_demo();
    settings.api_keys = keys;
    settings.secret_paths = secret_files(variables);
    try {
      for (const auto& given : origins) {
        for (auto& one : parse_list(given)) settings.cors_origins.push_back(std::move(one));
      }
    } catch (const std::invalid_argument& wrong) {
      throw CLI::ValidationError("--cors-origin", wrong.what());
    }
    for (const auto& given : aliases) {
      const auto equals = std::min(given.find('='), given.size());
      const auto model = given.substr(std::min(equals + 1, given.size()));
      settings.aliases.push_back({given.substr(0, equals), model});
    }
    for (const auto& given : budgets) {
      if (add_budget(settings, given)) continue;
      throw CLI::ValidationError("--budget", "'" + given + "' is no budget such as usd=2.5/day");
    }
  }

  /// The files that hold settings, so perhaps keys. An agent may neither read nor change them.
  std::vector<std::string> secret_files(const proxy::environment_map& variables) const {
    std::vector<std::string> paths{".env", env_file, config_file, user_file(variables)};
    paths.erase(std::remove(paths.begin(), paths.end(), ""), paths.end());
    return paths;
  }
};

std::string replace(std::string text, const char* from, const char* to) {
  return CLI::detail::find_and_replace(std::move(text), from, to);
}

std::string bash_completion(const CLI::App& app) {
  std::vector<std::string> words;
  std::string values;
  std::string commands;
  for (const auto& flag : flags_of(app)) {
    words.push_back(flag.name);
    if (flag.value.empty()) continue;
    const auto choices = proxy::text::join(flag.choices, " ");
    values += "    " + flag.name + ") " +
              (flag.value == "FILE"  ? "_claude_openai_paths -f; "
               : flag.value == "DIR" ? "_claude_openai_paths -d; "
               : choices.empty()     ? ""
                                 : "COMPREPLY=($(compgen -W '" + choices + "' -- \"$word\")); ") +
              "return ;;\n";
  }
  for (const auto* command : app.get_subcommands({})) {
    words.push_back(command->get_name());
    auto own = words_of(*command);
    for (const auto& flag : flags_of(*command)) own.push_back(flag.name);
    commands += "  [[ \" ${COMP_WORDS[*]} \" != *' " + command->get_name() + " '* ]] || words+=' " +
                proxy::text::join(own, " ") + "'\n";
  }
  return "_claude_openai_paths() {\n"
         "  local IFS=$'\\n'\n"
         "  compopt -o filenames 2> /dev/null\n"
         "  COMPREPLY=($(compgen \"$1\" -- \"$word\"))\n"
         "}\n\n"
         "_claude_openai() {\n"
         "  local word=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD - 1]}\n"
         "  [ \"$word\" != = ] || word=\n"
         "  [ \"$flag\" != = ] || flag=${COMP_WORDS[COMP_CWORD - 2]}\n"
         "  local words='" +
         proxy::text::join(words, " ") + "'\n" + commands + "  case $flag in\n" + values +
         "  esac\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
         "}\n\n"
         "complete -F _claude_openai claude-openai\n";
}

std::string zsh_completion(const CLI::App& app) {
  const auto specify = [](const flag_entry& flag) {
    auto text = replace(replace(flag.description, "'", "'\\''"), "[", "\\[");
    text = flag.name + "[" + replace(text, "]", "\\]") + "]";
    if (flag.value.empty()) return "  '" + text + "'\n";
    const auto action = flag.value == "FILE"   ? "_files"
                        : flag.value == "DIR"  ? "_files -/"
                        : flag.choices.empty() ? std::string(" ")
                                               : "(" + proxy::text::join(flag.choices, " ") + ")";
    return "  '*" + text + ":" + flag.value + ":" + action + "'\n";
  };
  std::string flags;
  for (const auto& flag : flags_of(app)) flags += specify(flag);
  std::string more;
  std::vector<std::string> names;
  for (const auto* command : app.get_subcommands({})) {
    names.push_back(command->get_name());
    std::string own;
    for (const auto& flag : flags_of(*command)) own += specify(flag);
    const auto words = words_of(*command);
    if (!words.empty()) own += "  '2:word:(" + proxy::text::join(words, " ") + ")'\n";
    more += "(( $words[(Ie)" + names.back() + "] )) && flags+=(\n" + own + ")\n";
  }
  return "#compdef claude-openai\nlocal -a flags=(\n" + flags + ")\n" + more +
         "_arguments $flags '1:command:(" + proxy::text::join(names, " ") + ")'\n";
}

std::string fish_completion(const CLI::App& app) {
  const auto quote = [](const std::string& text) {
    return "'" + replace(replace(text, "\\", "\\\\"), "'", "\\'") + "'";
  };
  const std::string begin = "complete -c claude-openai";
  const auto specify = [&](const flag_entry& flag) {
    return " -l " + flag.name.substr(2) +
           (flag.value.empty()     ? ""
            : flag.value == "FILE" ? " -r -F"
            : flag.value == "DIR"  ? " -x -a '(__fish_complete_directories)'"
                                   : " -x -a " + quote(proxy::text::join(flag.choices, " "))) +
           " -d " + quote(flag.description) + "\n";
  };
  auto lines = begin + " -f\n";
  for (const auto& flag : flags_of(app)) lines += begin + specify(flag);
  for (const auto* command : app.get_subcommands({})) {
    const auto& name = command->get_name();
    lines += begin + " -n __fish_use_subcommand -a " + name + " -d " +
             quote(command->get_description()) + "\n";
    const auto after = begin + " -n '__fish_seen_subcommand_from " + name + "'";
    const auto words = words_of(*command);
    if (!words.empty()) lines += after + " -a " + quote(proxy::text::join(words, " ")) + "\n";
    for (const auto& flag : flags_of(*command)) lines += after + specify(flag);
  }
  return lines;
}

/// The manual's page, for man(1).
std::string manual(const CLI::App& app) {
  const auto escape = [](const std::string& text) {
    return replace(replace(replace(text, "\\", "\\e"), "-", "\\-"), "\n.", "\n\\&.");
  };
  const auto item = [&](const std::string& name, const std::string& text) {
    return ".TP\n\\fB" + escape(name) + "\\fR\n\\&" + escape(text) + "\n";
  };
  auto page =
      std::string(".TH CLAUDE\\-OPENAI 1 \"\" \"claude\\-openai " CLAUDE_OPENAI_VERSION "\"\n") +
      ".SH NAME\nclaude\\-openai \\- " + escape(app.get_description()) +
      "\n.SH SYNOPSIS\n.B claude\\-openai\n[\\fIflags\\fR] [\\fIport\\fR] "
      "[\\fIcommand\\fR]\n.SH DESCRIPTION\n" +
      escape(app.get_footer()) + "\n.SH COMMANDS\n";
  for (const auto* command : app.get_subcommands({})) {
    page += item(command->get_name(), command->get_description());
    for (const auto& flag : flags_of(*command)) {
      page += item(command->get_name() + " " + flag.name + " " + flag.value, flag.description);
    }
  }
  page += ".SH FLAGS\n";
  for (const auto& group : app.get_groups()) {
    page += ".SS " + escape(group) + "\n";
    for (const auto* option : app.get_options()) {
      if (option->get_group() != group) continue;
      const auto names = option->get_name(false, true);
      page += item(names.substr(0, names.find('{')) + " " + value_name(*option), describe(*option));
    }
  }
  return page + ".SH EXIT STATUS\n" +
         item("0", "It was ended by a signal, or has told what was asked for.") +
         item("1", "Something keeps it from running, or doctor has found a fault.") +
         item("2", "A flag or a setting is wrong.");
}

/// `claude-openai generate bash`: for packages and `make install`, so it is not in the help.
int generate(const std::string& what) {
  const command_line line(false);
  if (what == "bash") {
    std::cout << bash_completion(line.app);
  } else if (what == "zsh") {
    std::cout << zsh_completion(line.app);
  } else if (what == "fish") {
    std::cout << fish_completion(line.app);
  } else if (what == "man") {
    std::cout << manual(line.app);
  } else {
    std::cerr << "claude-openai: generate takes bash, zsh, fish or man" << std::endl;
    return wrong_settings;
  }
  return 0;
}

using strings = std::vector<std::string>;

/// What `main` was called with, loaded at the start and again on SIGHUP.
struct arguments {
  std::string program;
  std::vector<std::string> given;
  std::set<std::string> files_read = {};            ///< of those that need not be there
  std::map<std::string, std::string> file_of = {};  ///< of each variable that a file has set
  std::vector<std::string> notices = {};  ///< what the user should know of the settings' files
  std::string kept_in = {};               ///< the file that keeps the key made for this run
  std::map<std::string, std::string> sources = {};  ///< of each setting: `flag`, or its variable

  using flag_variables = std::map<std::string, std::vector<std::string>>;

  /// The variables of the environment, and of the files where those before have not set the flag.
  proxy::environment_map read_variables(const std::string& env_file, const flag_variables& names) {
    auto variables = proxy::current_environment();
    notices.clear();
    file_of.clear();
    if (!env_file.empty()) {
      add_file(variables, env_file, read_file(env_file), true, names);
      return variables;
    }
    for (const auto& path : {std::string(".env"), user_file(variables)}) {
      const auto content = read_trusted(path);
      if (content) {
        files_read.insert(path);
        add_file(variables, path, *content, path != ".env" || is_beside_program(), names);
      } else if (files_read.count(path) > 0) {
        throw std::runtime_error(path + " is gone, or not this user's alone any more");
      }
    }
    return variables;
  }

  /// `whole`: all that the file sets counts, not only what is harmless.
  void add_file(proxy::environment_map& variables, const std::string& path,
                const std::string& content, bool whole, const flag_variables& names) {
    std::vector<std::string> taken;
    std::vector<std::string> left;
    const auto before = variables;
    try {
      for (auto& [name, value] : parse_env_file(content)) {
        const auto flag = flag_of(name, names);
        const bool takes = whole || is_harmless(flag);
        const bool counts = takes && !is_set(before, flag, names);
        if (counts && variables.emplace(name, value).second) file_of[name] = path;
        if (!flag.empty() || is_for_claude(name)) (takes ? taken : left).push_back(name);
      }
    } catch (const std::invalid_argument& broken) {
      throw std::invalid_argument(path + ": " + broken.what());
    }
    if (!taken.empty()) notices.push_back("settings from " + path + ": " + join(taken));
    if (!left.empty()) {
      notices.push_back("NOT taken from " + path + ", since it does not lie beside this program: " +
                        join(left) + " (to have them: --env-file " + path + ")");
    }
  }

  /// One of the flag's variables has a value.
  static bool is_set(const proxy::environment_map& variables, const std::string& flag,
                     const flag_variables& names) {
    const auto found = names.find(flag);
    return found != names.end() &&
           std::any_of(found->second.begin(), found->second.end(), [&](const auto& name) {
             return !proxy::value_or(variables, name.c_str()).empty();
           });
  }

  /// The flag that the variable sets; empty for none.
  static std::string flag_of(const std::string& variable, const flag_variables& names) {
    for (const auto& [flag, variables] : names) {
      if (std::find(variables.begin(), variables.end(), variable) != variables.end()) return flag;
    }
    return {};
  }

  static bool is_for_claude(const std::string& variable) {
    using proxy::auth_method;
    const auto lists = [&](std::string_view pattern) {
      return proxy::is_listed(variable, pattern);
    };
    for (const auto method :
         {auth_method::cli, auth_method::api_key, auth_method::bedrock, auth_method::vertex}) {
      const auto own = proxy::variables_of(method);
      if (std::any_of(own.begin(), own.end(), lists)) return true;
    }
    const auto& common = proxy::common_variables;
    return std::any_of(common.begin(), common.end(), lists);
  }

  static std::string join(const std::vector<std::string>& names) {
    return proxy::text::join(names, ", ");
  }

  /// The content of a file that is this user's word.
  std::optional<std::string> read_trusted(const std::string& path) {
    std::string problem;
    const auto file = proxy::open_own_file(path, problem);
    if (file) return proxy::read_all(file);
    if (!problem.empty()) notices.push_back(path + " is NOT read: " + problem);
    return std::nullopt;
  }

  /// The working directory is the program's own, or its checkout, where `make run` starts it.
  bool is_beside_program() const {
    namespace files = std::filesystem;
    std::error_code failed;
    const auto folder = files::path(proxy::path_of_program(program)).parent_path();
    return files::equivalent(folder, ".", failed) ||
           (folder.filename() == "build" && files::equivalent(folder.parent_path(), ".", failed));
  }

  /// In a folder of somebody else's, a file chooses at most how the proxy works: not what it runs,
  /// whom it lets in, where an account's token goes, nor how much the file of --config allows.
  static bool is_harmless(const std::string& flag) {
    const auto flags = proxy::text::split(
        "port model log-level log-format spares timeout queue-timeout idle-timeout session-ttl "
        "drain-timeout",
        ' ');
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
  }

  static void parse(command_line& line, const std::vector<std::string>& words) {
    std::vector<const char*> argv{"claude-openai"};
    for (const auto& word : words) argv.push_back(word.c_str());
    try {
      line.app.parse(static_cast<int>(argv.size()), argv.data());
    } catch (const CLI::ExtrasError&) {
      throw unknown_word(line.app);
    }
  }

  /// Parses the flags, and then once more with what the variables set where no flag does: so the
  /// library's own order (flags, file, environment) becomes ours.
  std::unique_ptr<command_line> load() {
    command_line flags(false);
    const auto names = flags.take_variables();
    parse(flags, given);
    sources.clear();
    auto variables = read_variables(flags.env_file, names);
    for (const auto* option : flags.app.get_options()) {
      if (option->count() > 0 && !option->get_lnames().empty()) {
        sources[option->get_lnames().front()] = "flag";
      }
    }
    auto words = given;
    for (const auto& [flag, all] : names) {
      if (sources.count(flag) > 0) continue;
      for (const auto& variable : all) take(flag, variable, variables, words);
    }
    for (const char* variable : {"DEBUG_MODE", "VERBOSE"}) {  // as the reference wrapper has them
      if (sources.count("log-level") > 0 || !is_true(proxy::value_or(variables, variable)))
        continue;
      words.insert(words.begin(), "--log-level=debug");
      sources["log-level"] = variable;
    }
    auto line = std::make_unique<command_line>(true);
    line->take_variables();
    line->program = proxy::path_of_program(program);
    line->config_file = flags.config_file;  // before `finish`, which hides it from agents
    try {
      parse(*line, words);
      line->finish(variables);
    } catch (const CLI::FileError&) {  // of --config, as the next one
      throw;
    } catch (const CLI::ConfigError&) {
      throw;
    } catch (const CLI::ParseError& wrong) {
      const auto code = static_cast<CLI::ExitCodes>(wrong.get_exit_code());
      if (code == CLI::ExitCodes::Success) throw;  // --help
      throw CLI::ParseError(with_sources(wrong.what()), code);
    }
    return line;
  }

  /// The message with the variable of each setting that it names, where one has set it.
  std::string with_sources(std::string message) const {
    for (const auto& [flag, source] : sources) {
      const auto end = message.find("--" + flag) + flag.size() + 2;
      const bool longer =
          end < message.size() && (std::isalpha(message[end]) || message[end] == '-');
      if (source == "flag" || end < flag.size() + 2 || longer) continue;
      message.insert(end, " (" + source + ")");
    }
    return message;
  }

  /// Puts a variable's value before the words, as its flag.
  void take(const std::string& flag, const std::string& variable,
            const proxy::environment_map& variables, strings& words) {
    const auto value = proxy::value_or(variables, variable.c_str());
    if (value.empty()) return;
    const auto file = file_of.find(variable);
    sources[flag] = (file == file_of.end() ? "environment" : file->second) + ", " + variable;
    const bool several = variable == "API_KEYS";
    auto place = words.begin();
    for (const auto& one : several ? proxy::text::split(value, ',') : strings{value}) {
      place = std::next(words.insert(place, "--" + flag + "=" + one));
    }
  }
};

/// What holds by default where that hangs on the machine or on other settings.
std::string derived_default(const std::string& name, const proxy::options& settings) {
  if (name == "rate-limit") return proxy::is_limited(settings) ? "true" : "false";
  if (name == "auth-method") return std::string(name_of(proxy::resolve_auth(settings)));
  if (name == "claude-path") return proxy::find_program("claude", settings.environment);
  if (name == "cwd") return "a private folder, made at the start";
  if (name != "max-processes") return {};
  return std::to_string(proxy::default_max_processes(proxy::physical_memory()));
}

/// `port = "9000"  # environment, PORT` for every setting; no secret is shown. What is behind a `#`
/// shall not be taken for asked for where a file of it is read again.
void print_configuration(const command_line& line, const proxy::options& settings,
                         const std::map<std::string, std::string>& sources) {
  for (const auto* option : line.app.get_options()) {
    if (option->get_lnames().empty()) continue;
    const auto& name = option->get_lnames().front();
    constexpr std::array<std::string_view, 4> no_settings = {"help", "version", "print-config",
                                                             "config"};
    if (std::find(no_settings.begin(), no_settings.end(), name) != no_settings.end()) continue;
    auto value = option->get_default_str();
    if (option->count() > 0) value = CLI::detail::join(option->reduced_results(), ",");
    if (option->count() == 0 && value.empty()) value = derived_default(name, settings);
    if (value.empty() && option->get_expected_max() == 0) value = "false";
    const bool has_password = name == "store" && value.find('@') != std::string::npos;
    if ((name == "api-key" && !value.empty()) || has_password) value = "***";
    const auto known = sources.find(name);
    const auto source = known != sources.end() ? known->second
                        : option->count() > 0  ? std::string("file")
                                               : std::string("default");
    const bool is_comment = value.empty() || value == "***" || source == "default";
    std::cout << (is_comment ? "# " : "") << name << " = \"" << value << "\"  # " << source << "\n";
  }
}

/// Whose programs are served without a key.
#ifdef __linux__
constexpr const char* keyless_users = "you";
#else
constexpr const char* keyless_users = "any user of this machine";
#endif

/// A terminal is there to be asked.
bool can_ask() {
  return ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1 &&
         ::tcgetpgrp(STDIN_FILENO) == ::getpgrp();  // else it is a job in the background
}

/// Asks until the answer is one. An empty line, the end of input or Ctrl-C: no.
bool says_yes(const std::string& question) {
  struct sigaction interrupted {};
  struct sigaction before {};
  interrupted.sa_handler = interrupt_prompt;  // without SA_RESTART: read(2) ends
  ::sigaction(SIGINT, &interrupted, &before);
  std::string answer = "?";
  while (answer != "y" && answer != "yes" && answer != "n" && answer != "no" && !answer.empty()) {
    std::cout << question << " (y/N): " << std::flush;
    std::array<char, 256> typed{};
    const ssize_t count = ::read(STDIN_FILENO, typed.data(), typed.size());
    if (count <= 0) std::cout << "\n";
    answer = count <= 0 ? ""
                        : proxy::text::to_lower(proxy::text::trim(
                              std::string_view(typed.data(), static_cast<std::size_t>(count))));
  }
  ::sigaction(SIGINT, &before, nullptr);
  return answer == "y" || answer == "yes";
}

/// Adds the key to a file of settings, which from then on only this user can read. False when that
/// cannot be.
bool add_key(const std::string& key, const std::string& path) {
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), failed);
  const proxy::unique_fd file(
      ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  if (!file || ::fchmod(file.get(), 0600) != 0) return false;
  const bool is_empty = ::lseek(file.get(), 0, SEEK_END) == 0;  // else its last line may be open
  return proxy::write_all(file.get(), (is_empty ? "API_KEY=" : "\nAPI_KEY=") + key + "\n");
}

/// Makes a client key where one is asked for or needed, and offers to keep it for later starts.
void make_client_key(proxy::options& settings, const command_line& line, arguments& called) {
  const bool keyless = settings.api_keys.empty();
  const bool asks = !line.no_prompt && !line.demo && can_ask();
  // The question is the reference wrapper's.
  const bool wanted =
      keyless && asks && settings.tcp && proxy::is_private(settings) && !line.generate_key &&
      says_yes("Without a client key every program that runs as " + std::string(keyless_users) +
               " can use your account, and\nrun commands, through this proxy.\n"
               "Enable API key protection?");
  if (!wanted && !line.generate_key && (!keyless || proxy::is_private(settings))) return;
  proxy::make_key(settings);
  const auto file = user_file(settings.environment);
  const bool is_read = keyless && line.env_file.empty() && !file.empty();  // at the next start
  if (!asks || !is_read || !says_yes("Keep the new key in " + file + " for later starts?")) return;
  if (add_key(settings.api_keys.back(), file)) {
    called.kept_in = file;
  } else {
    std::cout << "the key is not kept: " << file << ": " << proxy::last_system_error().message()
              << std::endl;
  }
}

/// A made key in a file for this user alone, as long as the proxy runs: what is printed where no
/// terminal shows it ends in a log.
class key_file {
 public:
  key_file(const std::string& key, const std::string& parent) : directory_(parent) {
    const proxy::unique_fd file(
        ::open(path().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (file && proxy::write_all(file.get(), key + "\n")) return;
    throw std::system_error(proxy::last_system_error(), "cannot write " + path());
  }

  std::string path() const { return directory_.path() + "/client-key"; }

 private:
  proxy::temporary_directory directory_;
};

/// Null where no key was made, or a terminal shows it.
std::unique_ptr<key_file> keep_made_key(const proxy::server& server,
                                        const proxy::environment_map& variables) {
  const auto& settings = server.settings();
  if (!settings.made_key || ::isatty(STDOUT_FILENO) == 1) return nullptr;
  return std::make_unique<key_file>(settings.api_keys.back(),
                                    proxy::value_or(variables, "TMPDIR", "/tmp"));
}

/// A request to try it with; `key_path` is where a made key is that is not printed.
void print_example(const proxy::server& server, const std::string& key_path) {
  const auto& settings = server.settings();
  // A key of the user's own is not shown; where it did not come from the shell, the shell asks for it.
  const bool own_key = !settings.api_keys.empty() && !settings.made_key;
  const bool asks = own_key && ::getenv("API_KEY") == nullptr;
  const auto bearer = [](const std::string& key) { return "Authorization: Bearer " + key; };
  const auto header = own_key              ? " -H \"" + bearer("$API_KEY") + "\""
                      : !settings.made_key ? std::string()
                      : key_path.empty()   ? " -H '" + bearer(settings.api_keys.back()) + "'"
                                           : " -H \"" + bearer("$(cat " + key_path + ")") + "\"";
  const auto socket = settings.tcp ? std::string() : "--unix-socket " + settings.unix_socket + " ";
  const auto base = settings.tcp ? server.url() : std::string("http://localhost");
  std::cout << "  try it             " << (asks ? "read -r API_KEY && " : "") << "curl " << socket
            << base << "/v1/chat/completions" << header
            << " -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Say hello\"}]}'" << std::endl;
}

void print_access(const proxy::options& settings, const std::string& key_path,
                  const std::string& kept_in) {
  if (settings.made_key) {
    std::cout << "  client key         "
              << (key_path.empty() ? settings.api_keys.back() : "in " + key_path)
              << (kept_in.empty() ? "  (made for this run; set your own by API_KEY)"
                                  : "  (kept in " + kept_in + ")")
              << "\n";
  } else if (!settings.api_keys.empty()) {
    std::cout << "  client keys        " << settings.api_keys.size() << "\n";
  } else if (settings.tcp) {
    std::cout << "  client key         none: for programs that run as " << keyless_users
              << " (--api-key)\n";
  }
  if (settings.tcp && !proxy::is_loopback_name(settings.host) && settings.tls_certificate.empty()) {
    std::cout
        << "  WARNING            keys and prompts cross the network in clear text; use --tls-cert "
           "and --tls-key, or a TLS proxy in front\n";
  }
}

/// The address without what may be secret in it: a user's name and password, and the query.
std::string without_secrets(std::string url) {
  url.erase(std::min(url.find_first_of("?#"), url.size()));
  const auto scheme = url.find("://");
  const auto begin = scheme == std::string::npos ? 0 : scheme + 3;
  const auto user = url.substr(begin, url.find('/', begin) - begin).rfind('@');
  return user == std::string::npos ? url : url.erase(begin, user + 1);
}

/// Where `claude` reaches the model, and whose account pays for that.
void print_account(const proxy::options& settings) {
  using proxy::auth_method;
  const auto method = proxy::resolve_auth(settings);
  const auto value = [&](const char* name) {
    return without_secrets(proxy::value_or(settings.environment, name));
  };
  std::string api = "https://api.anthropic.com";
  if (method == auth_method::bedrock) api = "Amazon Bedrock " + value("AWS_REGION");
  if (method == auth_method::vertex) api = "Google Vertex AI " + value("CLOUD_ML_REGION");
  const auto address = value(proxy::address_variable(method));
  std::cout << "  API                " << (address.empty() ? api : address) << "\n"
            << "  auth method        " << proxy::name_of(method) << ", by "
            << proxy::credential_source(settings) << "\n"
            << "  billed to          " << proxy::payer_of(settings) << "\n"
            << (settings.fallback
                    ? "  fallback           " + std::string(name_of(*settings.fallback)) +
                          (settings.fallback_model.empty() ? "" : " with ") +
                          settings.fallback_model + ", while the plan is used up\n"
                    : "")
            << (settings.web ? "  web search         on (--web): the API bills each search\n" : "");
}

void print_start(const proxy::server& server, const std::string& key_path,
                 const std::string& kept_in) {
  const auto& settings = server.settings();
  const auto url = server.url();
  std::cout << "claude-openai " CLAUDE_OPENAI_VERSION " is listening on " << url << "\n";
  if (settings.tcp) {
    std::cout << "  OpenAI base URL    " << url << "/v1\n"
              << "  Anthropic base URL " << url << "\n"
              << "  Ollama base URL    " << url << "\n"
              << "  web page           " << url << "/\n";
  }
  if (!settings.unix_socket.empty()) {
    std::cout << "  unix socket        " << settings.unix_socket << "\n";
  }
  if (settings.demo) {
    std::cout << "  DEMO               no model answers here, but a stand-in; ask it \"/help\"\n"
              << "  billed to          nobody\n";
  } else {
    print_account(settings);
  }
  std::cout << "  claude             " << settings.claude_path << "\n"
            << "  working directory  " << settings.working_directory << "\n"
            << "  spares             " << settings.spares << "\n";
  if (!settings.store.empty()) {
    std::cout << "  state              " << without_secrets(settings.store) << "\n";
  }
  print_access(settings, key_path, kept_in);
  print_example(server, key_path);
}

void print_inspection(proxy::server& server, const proxy::cli_facts& facts, bool at_start) {
  if (at_start) std::cout << "  Claude Code tools  " << server.confinement() << "\n";
  const auto missing = proxy::missing_credentials(server.settings());
  if (!facts.version.empty()) std::cout << "  claude version     " << facts.version << "\n";
  if (!facts.warning.empty()) std::cout << "  WARNING            " << facts.warning << "\n";
  if (facts.problem.empty() && missing.empty()) {
    const char* login = facts.logged_in ? "valid" : "not known: claude did not tell it in time";
    std::cout << "  login              " << login << std::endl;
    return;
  }
  for (const auto& problem : missing) std::cout << "  login              " << problem << "\n";
  if (!facts.problem.empty()) std::cout << "  PROBLEM            " << facts.problem << "\n";
  std::cout << std::flush;
}

/// Memory holds keys and prompts: no other process of this user may read it, and no core file.
void protect_memory() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_CORE, &limit) == 0) {
    limit.rlim_cur = 0;
    ::setrlimit(RLIMIT_CORE, &limit);
  }
#ifdef __linux__
  ::prctl(PR_SET_DUMPABLE, 0);
#endif
}

/// A process, a queued request and a connection each take some descriptors; the usual 1024 are few.
void allow_many_descriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 65'536);
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// A key that was made for this run stays valid, once, also where it was kept and loaded again.
void carry_made_key(const proxy::options& first, proxy::options& fresh) {
  fresh.made_key = first.made_key;
  if (!first.made_key) return;
  const auto& made = first.api_keys.back();
  auto& keys = fresh.api_keys;
  keys.erase(std::remove(keys.begin(), keys.end(), made), keys.end());
  keys.push_back(made);
}

int serve(const proxy::options& settings, arguments& called) {
  allow_many_descriptors();
  proxy::server server(settings);
  server.bind();
  if (settings.tcp && settings.port != 0 && server.port() != settings.port) {
    std::cout << "port " << settings.port << " is busy; using " << server.port() << " instead\n";
  }
  std::atomic<bool> refused{false};
  bool inspected = false;
  server.on_inspected = [&](const proxy::cli_facts& facts) {
    const bool at_start = !std::exchange(inspected, true);
    print_inspection(server, facts, at_start);
    if (!facts.too_old || !at_start) return;
    refused = true;
    server.stop();
  };
  server.on_reload = [&] {
    const auto line = called.load();
    auto fresh = line->settings;
    carry_made_key(server.settings(), fresh);
    try {
      server.reload(fresh);
    } catch (const std::invalid_argument& wrong) {
      throw std::invalid_argument(called.with_sources(wrong.what()));
    }
    settings.log.set_level(parse_level(line->log_level));
  };
  running = &server;
  // Once it is gone a signal changes nothing: all that is left is to clean up.
  const std::shared_ptr<void> while_it_runs(nullptr, [](void*) { running = nullptr; });
  std::signal(SIGINT, stop_running);
  std::signal(SIGTERM, stop_running);
  has_terminal = ::isatty(STDIN_FILENO) == 1;
  std::signal(SIGHUP, reload_running);
  const auto kept_key = keep_made_key(server, settings.environment);
  print_start(server, kept_key ? kept_key->path() : "", called.kept_in);
  server.run();
  return refused ? 1 : 0;
}

void print_finding(const proxy::finding& found, const char* bad) {
  std::cout << (found.good ? "ok    " : bad) << found.what << ": " << found.detail << "\n";
  if (!found.good) std::cout << "      " << found.remedy << "\n";
  std::cout << std::flush;
}

/// `claude-openai doctor`: 0 when everything is there.
int examine(const proxy::options& settings) {
  proxy::doctor doctor(settings,
                       [](const proxy::finding& found) { print_finding(found, "FAIL  "); });
  return doctor.run() ? 0 : 1;
}

/// One real answer in a dialect.
struct dialect_trial {
  const char* name;
  const char* path;
  const char* request;  ///< without the model
  const char* end;      ///< what the last event of a stream holds
};

constexpr std::array<dialect_trial, 4> dialect_trials{{
    {"chat completions", "/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Say OK and nothing else."}]})", "[DONE]"},
    {"Responses", "/v1/responses", R"({"input": "Say OK and nothing else.", "store": false})",
     "response.completed"},
    {"Messages", "/v1/messages",
     R"({"messages": [{"role": "user", "content": "Say OK and nothing else."}],
         "max_tokens": 1000})",
     "message_stop"},
    {"completions", "/v1/completions", R"({"prompt": "One, two, three,", "max_tokens": 20})",
     "[DONE]"},
}};

/// The first text of an answer in any dialect: chat's `content`, the others' `text`.
std::string text_of(const proxy::json& value) {
  if (!value.is_structured()) return {};
  for (const char* name : {"content", "text"}) {
    if (auto text = proxy::string_of(value, name); !text.empty()) return text;
  }
  for (const auto& member : value) {
    if (auto text = text_of(member); !text.empty()) return text;
  }
  return {};
}

/// Looks at a running proxy as its clients do, and tells each finding as it comes.
class remote_doctor {
 public:
  remote_doctor(std::string url, const std::string& key, const proxy::options& settings)
      : url_(std::move(url)), model_(settings.default_model), timeout_(settings.timeout) {
    if (!key.empty()) headers_.emplace_back("Authorization", "Bearer " + key);
  }

  /// True when nothing is wrong.
  bool run() {
    if (!check_server() || !check_models()) return false;
    check_login();
    ask("/v1/sessions");
    tell("sessions", true, std::to_string(proxy::member_of(got_, "sessions").size()));
    for (const auto& trial : dialect_trials) {
      check_answer(trial);
      check_stream(trial);
    }
    check_tools();
    return well_;
  }

 private:
  void ask(const std::string& path, const proxy::json& body = {}) {
    const auto begun = std::chrono::steady_clock::now();
    const auto limit = body.empty()
                           ? std::min<std::chrono::milliseconds>(timeout_, std::chrono::seconds(10))
                           : timeout_;
    answer_ = proxy::ask_server(url_, path, body.empty() ? "" : proxy::dump(body), headers_, limit);
    took_ += std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - begun);
    got_ = proxy::try_parse_json(answer_.body);
  }

  /// What was found in the last answer, unless that is none: then the cause is told, and a remedy.
  bool tell(const std::string& what, bool good, std::string detail, std::string remedy = {}) {
    if (answer_.status != 200) {
      good = false;
      const auto message = proxy::string_of(proxy::member_of(got_, "error"), "message");
      detail = answer_.status == 0 ? "no answer: " + answer_.body
                                   : "HTTP " + std::to_string(answer_.status) + " " +
                                         (message.empty() ? answer_.type : message);
      remedy = remedy_for_status();
    } else if (remedy.empty()) {
      remedy = "look into the proxy's log" +
               (answer_.id.empty() ? "" : " for the request " + answer_.id);
    }
    const auto time = ", " + std::to_string(std::exchange(took_, {}).count()) + " ms";
    print_finding({what, good, proxy::routes::printable(detail + time), remedy}, "FAIL  ");
    well_ = well_ && good;
    return good;
  }

  std::string remedy_for_status() const {
    switch (answer_.status) {
      case 0:
        return answer_.body.find("SSL") != std::string::npos
                   ? "name the file with the certificate's issuer by SSL_CERT_FILE"
                   : "start the proxy, or give the address that it prints at its start";
      case 401:
        return headers_.empty() ? "give the proxy's client key: --key KEY, or CLAUDE_OPENAI_KEY"
                                : "the proxy has other client keys (its --api-key or API_KEY)";
      case 404:
        return "give the address that the proxy prints at its start, and a model that it lists";
      case 429: return "wait a minute, or raise the proxy's limits (--rate-limit-chat, --budget)";
      default: return "run `claude-openai doctor` where the proxy runs";
    }
  }

  /// Whether it is there, is this program, and is well.
  bool check_server() {
    ask("/version");
    const bool ours = proxy::string_of(got_, "service") == "claude-openai";
    if (!tell("version", ours,
              ours ? proxy::string_of(got_, "version") : "what answers is no claude-openai",
              "give the address that the proxy prints at its start")) {
      return false;
    }
    ask("/health");
    const auto status = proxy::string_of(got_, "status");
    const auto code = proxy::string_of(got_, "code");
    const auto problem = proxy::string_of(got_, "problem");
    const auto warning = proxy::string_of(got_, "warning");
    const auto more = code.empty() ? warning : code;
    tell("health", status == "healthy",
         problem.empty() ? status + (more.empty() ? "" : ", " + more) : problem,
         "run `claude-openai doctor` where the proxy runs");
    return true;
  }

  bool check_models() {
    ask("/v1/models");
    const auto& models = proxy::member_of(got_, "data");
    std::string detail = std::to_string(models.size());
    for (const auto& model : models) {
      const auto required = proxy::string_of(model, "claude_code_required");
      if (required.empty()) continue;
      detail += "; " + proxy::string_of(model, "id") + " needs Claude Code " + required +
                " or newer: `claude update`";
    }
    return tell("models", !models.empty(), detail);
  }

  void check_login() {
    ask("/v1/auth/status");
    const auto& status = proxy::member_of(proxy::member_of(got_, "claude_code_auth"), "status");
    const auto& server = proxy::member_of(got_, "server_info");
    const auto& errors = proxy::member_of(status, "errors");
    tell("login", proxy::boolean_of(status, "valid"),
         proxy::string_of(status, "method") +
             (proxy::boolean_of(server, "api_key_required") ? ", client key set"
                                                            : ", no client key") +
             (errors.empty() ? "" : ": " + proxy::dump(errors)),
         "run `claude auth login` as the proxy's user, or set ANTHROPIC_API_KEY there");
  }

  void ask_model(const dialect_trial& trial, bool streams) {
    auto body = proxy::try_parse_json(trial.request);
    body["model"] = model_;
    body["stream"] = streams;
    ask(trial.path, body);
  }

  void check_answer(const dialect_trial& trial) {
    ask_model(trial, false);
    const auto text = text_of(got_);
    tell(trial.name, !text.empty(), text.empty() ? "an answer without a text" : "answered");
  }

  void check_stream(const dialect_trial& trial) {
    ask_model(trial, true);
    std::string last;
    std::string problem;
    std::size_t events = 0;
    bool has_text = false;
    for (const auto& line : proxy::text::split(answer_.body, '\n')) {
      if (!proxy::text::starts_with(line, "data:")) continue;
      ++events;
      last = line;
      const auto event = proxy::try_parse_json(last.substr(5));
      has_text = has_text || !text_of(event).empty();
      if (problem.empty()) problem = proxy::string_of(proxy::member_of(event, "error"), "message");
    }
    if (problem.empty() && !has_text) problem = "a stream without a text";
    if (problem.empty() && last.find(trial.end) == std::string::npos) {
      problem = "the stream breaks off after: " + last.substr(0, 200);
    }
    tell(std::string(trial.name) + ", streamed", problem.empty(),
         problem.empty() ? std::to_string(events) + " events" : problem);
  }

  /// The model calls a tool, and answers once it has the result.
  void check_tools() {
    auto body = proxy::try_parse_json(R"({
      "messages": [{"role": "user", "content": "What is the weather in Lisbon?"}],
      "tools": [{"type": "function", "function": {
        "name": "get_weather", "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}],
      "tool_choice": "required"})");
    body["model"] = model_;
    ask("/v1/chat/completions", body);
    const proxy::json::json_pointer message("/choices/0/message");
    const auto call = message / "tool_calls" / 0;
    if (answer_.status != 200 || !got_.contains(call)) {
      tell("a tool round", false, "the model has called no tool", "try it with another --model");
      return;
    }
    body["messages"].push_back(got_[message]);
    body["messages"].push_back(
        proxy::json::object({{"role", "tool"},
                             {"tool_call_id", proxy::string_of(got_[call], "id")},
                             {"content", "sunny, 24 degrees"}}));
    body.erase("tool_choice");
    ask("/v1/chat/completions", body);
    const auto text = text_of(got_);
    tell("a tool round", !text.empty(),
         text.empty() ? "no answer to the result" : "called, and answered with its result");
  }

  std::string url_;
  std::string model_;
  std::chrono::milliseconds timeout_;
  std::vector<std::pair<std::string, std::string>> headers_;
  proxy::remote_answer answer_;
  proxy::json got_;  ///< the answer's body
  std::chrono::milliseconds took_{0};
  bool well_ = true;
};

/// The key for the proxy of `--url`.
std::string client_key(const command_line& line) {
  return line.client_key.empty() ? proxy::value_or(line.settings.environment, "CLAUDE_OPENAI_KEY")
                                 : line.client_key;
}

/// The text with the proxy's address, key and model in it.
std::string fill_in(std::string text, const std::string& url, const std::string& key,
                    const std::string& model) {
  text = replace(std::move(text), "{url}", url.c_str());
  text = replace(std::move(text), "{key}", key.empty() ? "none" : key.c_str());
  return replace(std::move(text), "{model}", model.c_str());
}

/// Where a client reads its settings.
std::string path_of(const proxy::client_recipe& client, const proxy::environment_map& variables) {
  const std::string file = client.file;
  for (const auto& [variable, folder] :
       {std::pair{"CODEX_HOME", "codex/"}, std::pair{"XDG_CONFIG_HOME", "config/"}}) {
    const auto place = proxy::value_or(variables, variable);
    const auto usual = "." + std::string(folder);
    if (place.empty() || !proxy::text::starts_with(file, usual)) continue;
    return place + "/" + file.substr(usual.size());
  }
  const auto home = proxy::value_or(variables, "HOME");
  if (home.empty()) throw std::invalid_argument("connect: HOME is not set");
  return home + "/" + file;
}

/// Objects are merged member by member; a list gets what it does not hold yet.
void merge(proxy::json& kept, const proxy::json& added) {
  if (kept.is_object() && added.is_object()) {
    for (const auto& member : added.items()) merge(kept[member.key()], member.value());
  } else if (kept.is_array() && added.is_array()) {
    for (const auto& one : added) {
      if (std::find(kept.begin(), kept.end(), one) == kept.end()) kept.push_back(one);
    }
  } else {
    kept = added;
  }
}

/// The content of a client's file with its settings in it; nullopt with the reason where a program
/// must not change it.
std::optional<std::string> merge_json(const std::string& kept, const std::string& settings,
                                      std::string& problem) {
  auto all = proxy::try_parse_json(kept);
  if (!all.is_object()) {
    problem = "it is no plain JSON (a program would drop its comments)";
    return std::nullopt;
  }
  const auto before = all;
  merge(all, proxy::try_parse_json(settings));
  return all == before ? kept : all.dump(2) + "\n";
}

/// What a TOML file (`name`, `table.name`), or the outermost mapping of a YAML file, sets. A table
/// of TOML's ends in a dot.
std::vector<std::string> names_in(const std::string& text, bool toml) {
  std::vector<std::string> names;
  std::string table;
  for (auto line : CLI::detail::split(text, '\n')) {
    if (toml) line = proxy::text::trim(line);
    const bool opens = toml && proxy::text::starts_with(line, "[");
    const auto end = line.find(opens ? ']' : toml ? '=' : ':');
    if (end == std::string::npos || std::strchr("# -", line.front()) != nullptr) continue;
    auto name = line.substr(0, end);
    const auto is_mark = [](char c) { return std::strchr("[\"' \t", c) != nullptr; };
    name.erase(std::remove_if(name.begin(), name.end(), is_mark), name.end());
    if (opens) table = name + ".";
    names.push_back(opens ? table : table + name);
  }
  return names;
}

/// The same for TOML and YAML, which are only added to. In TOML what is of no table comes first.
std::optional<std::string> merge_lines(const std::string& kept, const std::string& settings,
                                       bool toml, std::string& problem) {
  if (proxy::text::is_blank(kept)) return settings;
  const auto mark = [](const std::string& lines) {
    return lines.empty()
               ? lines
               : "# claude-openai connect: begin\n" + lines + "# claude-openai connect: end\n";
  };
  const auto first_table = toml ? settings.find("\n[") + 1 : 0;
  const auto head = mark(settings.substr(0, first_table));
  const auto tail = mark(settings.substr(first_table));
  const auto has = [&](const std::string& text) { return kept.find(text) != std::string::npos; };
  if (has(settings) || (has(head) && has(tail))) return kept;
  if (has("\"\"\"") || has("'''")) problem = "it holds texts of several lines";
  for (const auto& theirs : names_in(kept, toml)) {
    for (const auto& ours : names_in(settings, toml)) {
      const bool within = proxy::text::ends_with(ours, ".") && theirs.find(ours) == 0;
      const bool clash = theirs == ours || ours.find(theirs + ".") == 0 || within;
      if (clash && problem.empty()) problem = "it sets `" + theirs + "` already";
    }
  }
  if (!problem.empty()) return std::nullopt;
  return head + kept + (kept.back() == '\n' ? "" : "\n") + tail;
}

/// Whole or not at all; it keeps the file's mode, and a new one is for this user alone.
void replace_file(const std::string& path, const std::string& content) {
  struct stat before {};
  const mode_t mode = ::stat(path.c_str(), &before) == 0 ? before.st_mode & 07777 : 0600;
  auto fresh = path + ".XXXXXX";
  const proxy::unique_fd file(::mkstemp(fresh.data()));
  const bool written = file && ::fchmod(file.get(), mode) == 0 &&
                       proxy::write_all(file.get(), content) && ::fsync(file.get()) == 0 &&
                       ::rename(fresh.c_str(), path.c_str()) == 0;
  if (written) return;
  const auto failure = proxy::last_system_error();
  ::unlink(fresh.c_str());
  throw std::system_error(failure, "cannot write " + path);
}

/// Copies the file beside itself, and returns the copy's path; empty where there is no file.
std::string back_up(const std::string& path) {
  namespace files = std::filesystem;
  if (!files::exists(path)) return {};
  auto copy = path + ".bak";
  for (int number = 2; files::exists(copy); ++number) copy = path + ".bak" + std::to_string(number);
  files::copy_file(path, copy);
  return copy;
}

/// `claude-openai connect CLIENT --write`.
int write_settings(const proxy::client_recipe& client, const std::string& settings,
                   const std::string& usual_path, bool asks) {
  namespace files = std::filesystem;
  const auto path = files::weakly_canonical(usual_path).string();  // what a symlink leads to
  if (files::is_symlink(path)) throw std::invalid_argument(path + " leads nowhere");
  const auto kept = files::exists(path) ? read_file(path) : std::string();
  std::string problem;
  const bool json = proxy::text::ends_with(client.file, ".json");
  const bool toml = proxy::text::ends_with(client.file, ".toml");
  const auto merged = json && !proxy::text::is_blank(kept)
                          ? merge_json(kept, settings, problem)
                          : merge_lines(kept, settings, toml, problem);
  if (merged == kept) {
    std::cout << path << " has these settings already" << std::endl;
    return 0;
  }
  if (!merged || asks) std::cout << settings << std::flush;
  if (!merged) {
    std::cerr << "claude-openai: " << path << " is left as it is: " << problem
              << ". Add the lines above to it" << std::endl;
    return 1;
  }
  if (asks && !says_yes("Write this into " + path + "?")) return 1;
  files::create_directories(files::path(path).parent_path());
  const auto copy = back_up(path);
  replace_file(path, *merged);
  std::cout << "written: " << path << (copy.empty() ? "" : " (before: " + copy + ")") << std::endl;
  return 0;
}

void list_clients(const proxy::environment_map& variables) {
  for (const auto& client : proxy::client_recipes) {
    const std::string name = client.name;
    const auto place = *client.file == '\0' ? "printed only" : path_of(client, variables);
    std::cout << name << std::string(12 - name.size(), ' ') << place << "\n";
  }
  std::cout << std::flush;
}

/// In a shell's word, and between quotes in JSON, TOML and YAML, such a value stands as it is.
void require_plain(const char* flag, const std::string& value) {
  const bool plain = std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || std::strchr("-_.:/@%+=,[]", c) != nullptr;
  });
  if (!plain) {
    throw std::invalid_argument(std::string(flag) +
                                " has characters that not every client's settings take as they "
                                "are: put it there by hand");
  }
}

/// That of --url, else of a proxy with these settings on this machine.
std::string address_for_clients(const command_line& line) {
  const auto& settings = line.settings;
  if (proxy::text::starts_with(line.url, "unix:")) {
    throw std::invalid_argument("--url: clients need an address with http:// or https://");
  }
  if (!line.url.empty()) return line.url;
  return (settings.tls_certificate.empty() ? "http" : "https") +
         ("://127.0.0.1:" + std::to_string(settings.port));
}

/// `claude-openai connect`: the settings go to stdout, and what else there is to say to stderr.
int connect(const command_line& line, const std::string& key) {
  const auto& settings = line.settings;
  if (line.client.empty()) {
    list_clients(settings.environment);
    return 0;
  }
  const auto client = std::find_if(proxy::client_recipes.begin(), proxy::client_recipes.end(),
                                   [&](const auto& one) { return one.name == line.client; });
  const auto url = address_for_clients(line);
  require_plain("--url", url);
  require_plain("--key", key);
  require_plain("--model", settings.default_model);
  const auto fill = [&](const char* text) {
    return fill_in(text, url, key, settings.default_model);
  };
  const auto path = *client->file == '\0' ? "" : path_of(*client, settings.environment);
  if (line.write && path.empty()) {
    throw std::invalid_argument("--write: this client has no file for it; run what `connect " +
                                line.client + "` prints");
  }
  if (line.write && !line.yes && !can_ask()) {
    throw std::invalid_argument("--write asks on a terminal; elsewhere add --yes");
  }
  int status = 0;
  if (line.write) {
    status = write_settings(*client, fill(client->settings), path, !line.yes);
  } else {
    std::cout << fill(client->settings) << std::flush;
    if (!path.empty()) std::cerr << "# for " << path << " (--write puts it there)\n";
  }
  if (status == 0 && *client->start != '\0') std::cerr << "# then: " << fill(client->start) << "\n";
  if (key.empty() && !settings.api_keys.empty()) {
    std::cerr << "# the proxy's client key goes there by --key, or CLAUDE_OPENAI_KEY\n";
  }
  return status;
}

double number_of(const proxy::json& row, const char* name) {
  const auto& found = proxy::member_of(row, name);
  return found.is_number() ? found.get<double>() : 0;
}

void print_usage_row(const std::string& name, const proxy::json& row) {
  std::cout << std::left << std::setw(32) << proxy::routes::printable(name) << std::right
            << std::setw(9) << proxy::integer_of(row, "answers");
  for (const auto* kind : proxy::token_kinds) {
    std::cout << std::setw(13) << proxy::integer_of(row, (kind + std::string("_tokens")).c_str());
  }
  std::cout << std::setw(8) << std::fixed << std::setprecision(0)
            << 100 * number_of(row, "cache_share") << "%" << std::setw(12) << std::setprecision(4)
            << number_of(row, "cost_usd") << "\n";
}

/// `claude-openai usage`: what `GET /v1/usage` tells, as a table.
int print_usage(const command_line& line) {
  const auto& keys = line.settings.api_keys;
  auto key = client_key(line);
  if (key.empty() && line.url.empty() && !keys.empty()) key = keys.front();
  std::vector<std::pair<std::string, std::string>> headers;
  if (!key.empty()) headers.emplace_back("Authorization", "Bearer " + key);
  const auto answer =
      proxy::ask_server(line.url.empty() ? address_for_clients(line) : line.url,
                        "/v1/usage?by=" + line.usage_by + "&from=" + line.usage_from, "", headers,
                        std::chrono::seconds(10));
  const auto usage = proxy::try_parse_json(answer.body);
  if (answer.status != 200) {
    const auto message = proxy::string_of(proxy::member_of(usage, "error"), "message");
    throw std::runtime_error(answer.status == 0 ? "no answer: " + answer.body
                                                : "HTTP " + std::to_string(answer.status) + " " +
                                                      proxy::routes::printable(message));
  }
  std::cout << std::left << std::setw(32) << line.usage_by << std::right << std::setw(9)
            << "answers";
  for (const auto* kind : proxy::token_kinds) std::cout << std::setw(13) << kind;
  std::cout << std::setw(9) << "cached" << std::setw(12) << "USD"
            << "\n";
  for (const auto& row : proxy::member_of(usage, "data")) {
    print_usage_row(proxy::string_of(row, line.usage_by.c_str()), row);
  }
  print_usage_row("total", proxy::member_of(usage, "total"));
  if (const auto& plan = proxy::member_of(usage, "plan"); plan.is_object()) {
    std::cout << "The plan costs " << number_of(plan, "cost_usd") << " USD in that time, at "
              << std::setprecision(2) << number_of(plan, "usd_per_month")
              << " USD a month; its answers cost " << std::setprecision(4)
              << number_of(plan, "list_price_usd") << " USD at the list price.\n";
  }
  return 0;
}

/// `claude-openai doctor --security`: 0 when no more is open than needs be.
int review(const proxy::options& settings) {
  bool all_good = true;
  for (const auto& found : proxy::review_security(settings, proxy::look_at_sandbox(settings))) {
    print_finding(found, "OPEN  ");
    all_good = all_good && found.good;
  }
  return all_good ? 0 : 1;
}

/// What others could read in the list of processes is wiped out.
void hide_keys(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const auto equals = word.find('=');
    const auto flag = word.substr(0, equals);
    if (flag != "--api-key" && flag != "--key" && flag != "--store") continue;
    char* const next = i + 1 < argc ? argv[i + 1] : nullptr;
    char* const secret = equals == std::string_view::npos ? next : argv[i] + equals + 1;
    const bool is_file =
        flag == "--store" && secret != nullptr && std::strchr(secret, '@') == nullptr;
    if (secret != nullptr && !is_file) std::memset(secret, '*', std::strlen(secret));
  }
}

/// Large requests come and go: what they take is not kept for later ones.
void give_large_blocks_back() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 512 * 1024);
#endif
}

/// Memory that is short is so for a moment, mostly: whoever needs some waits up to a second for it.
void wait_for_memory() {
  using clock = std::chrono::steady_clock;
  thread_local clock::time_point begun;
  thread_local clock::time_point last;
  const auto now = clock::now();
  if (now - last > std::chrono::milliseconds(100)) begun = now;
  last = now;
  if (now - begun > std::chrono::seconds(1)) throw std::bad_alloc();
  ::usleep(10'000);
}

int run(arguments& called) {
  protect_memory();
  give_large_blocks_back();
  std::set_new_handler(wait_for_memory);
  const auto line = called.load();
  auto settings = line->settings;
  if (line->print_config) {
    print_configuration(*line, settings, called.sources);
    for (const auto& notice : called.notices) std::cout << "# " << notice << "\n";
    return 0;
  }
  if (line->connect->parsed()) return connect(*line, client_key(*line));
  if (line->usage->parsed()) return print_usage(*line);
  if (!line->url.empty()) {
    return remote_doctor(line->url, client_key(*line), settings).run() ? 0 : 1;
  }
  for (const auto& notice : called.notices) std::cout << notice << std::endl;
  if (line->doctor->parsed()) return line->security ? review(settings) : examine(settings);
  make_client_key(settings, *line, called);
  return serve(settings, called);
}

}  // namespace

int main(int argc, char** argv) {
  proxy::demo::play_if_asked(argc, argv);
  if (argc == 3 && argv[1] == std::string_view("generate")) return generate(argv[2]);
  arguments called{argv[0], {argv + 1, argv + argc}};
  hide_keys(argc, argv);
  try {
    return run(called);
  } catch (const CLI::FileError& missing) {
    std::cerr << "claude-openai: --config: " << missing.what() << std::endl;
    return wrong_settings;
  } catch (const CLI::ConfigError& wrong) {
    std::string said = wrong.what();
    const std::string_view unknown = "INI was not able to parse ";
    if (said.compare(0, unknown.size(), unknown) == 0) {
      said = "'" + said.substr(unknown.size()) + "' is no setting (see --help)";
    }
    std::cerr << "claude-openai: the file of --config: " << said << std::endl;
    return wrong_settings;
  } catch (const CLI::ParseError& wrong) {
    return command_line(false).app.exit(wrong) == 0 ? 0 : wrong_settings;  // of --help: 0
  } catch (const std::invalid_argument& wrong) {
    std::cerr << "claude-openai: " << called.with_sources(wrong.what()) << std::endl;
    return wrong_settings;
  } catch (const std::exception& failure) {
    std::cerr << "claude-openai: " << failure.what() << std::endl;
    return 1;
  }
}
