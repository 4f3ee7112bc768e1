// [05] options, [16] cli_command and [23] agents: permission rules, as a client and the operator write
// them, as the CLI splits them, and as the proxy makes them of paths; and words for a shell.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/unit/agents.hpp"

using namespace claude_openai;
using namespace agents_test;
using test::error_of;

namespace {

/// The CLI splits each argument of --allowedTools so, as seen on 2.1.120 to 2.1.332: at commas and
/// blanks outside of parentheses, which do not nest; pieces are trimmed, empty ones dropped. There
/// are no quotes and no escapes, and no state goes from one argument to the next.
strings split_by_cli(const std::vector<std::string>& arguments) {
  strings rules;
  for (const auto& argument : arguments) {
    std::string piece;
    bool inside = false;
    for (const char c : argument + ",") {
      inside = c == '(' || (inside && c != ')');
      if (inside || (c != ',' && c != ' ')) {
        piece += c;
        continue;
      }
      if (const auto rule = text::trim(piece); !rule.empty()) rules.emplace_back(rule);
      piece.clear();
    }
    // A parenthesis that stays open keeps the separators behind it.
    if (inside) piece.pop_back();
    if (const auto rule = text::trim(piece); !rule.empty()) rules.emplace_back(rule);
  }
  return rules;
}

/// The rules that a process is started with, an argument each.
strings allowed_arguments(const options& settings, const agent_request& agent) {
  const auto words = make_command(settings, {"m", agent}).arguments;
  auto from = std::find(words.begin(), words.end(), "--allowedTools") + 2;  // behind mcp__client
  strings rules;
  if (from == words.end() || *from != "--allowedTools") return rules;
  for (++from; from != words.end() && from->substr(0, 2) != "--"; ++from) rules.push_back(*from);
  return rules;
}

/// Names, commas, blanks, parentheses and quotes in any order, more often such that make rules.
std::string random_header(test::generator& random) {
  static const strings pieces = {"Read",        "Bash",       "mcp__srv", "mcp__srv__say",
                                 "Bash(git:*)", "Read(a, b)", "(",        ")",
                                 ",",           ", ",         " ",        "\t",
                                 "\"",          "'",          "\\",       "*",
                                 "x",           "(x)",        "))",       "((",
                                 "-p",          ":",          "\xC2\xA0", ";",
                                 "()"};
  std::string header;
  for (auto left = random.between(1, 8); left > 0; --left) header += random.pick(pieces);
  return header;
}

/// What the function makes of each header that the proxy takes; returns their number.
template <class Function>
int for_each_accepted(fixture& given, test::generator& random, Function check) {
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    const auto header = random_header(random);
    try {
      const auto agent = given.settled(asking_tools(header));
      CAPTURE(header);
      check(agent);
      ++accepted;
    } catch (const api_error&) {
    }
  }
  return accepted;
}

std::vector<std::string> problems_with(const options& settings) { return validate(settings); }

}  // namespace

TEST_CASE("rules: a name, or a name and one pair of parentheses that ends it") {
  for (const std::string good :
       {"Bash", "mcp__a-b__c", "B*", "Bash(git:*)", "Bash(git log, x)", "Read(//etc/**)",
        "Read(~/a b)", "Bash(\"x\")", "Bash(é)", "_", "Bash( )"}) {
    CAPTURE(good);
    CHECK(is_rule(good));
  }
  for (const std::string bad :
       {"",           "(",          ")",        "()",          "Bash(",       "Bash)",
        "Bash()",     "Bash(a",     "Bash(a)x", "Bash(a) ",    " Bash",       "Bash ",
        "Bash(a)(b)", "Bash((a)",   "Bash(a))", "Bash((a))",   "Bash(a(b)c)", "Read Bash",
        "Read,Bash",  "-p",         "--x",      "-(x)",        "Bäsh",        "Bash\n",
        "Bash(a\nb)", "Bash(a\tb)", "$(x)",     "Bash(a\x7f)", "Bash(a\\)",   "\"Bash\"",
        "Read\tBash"}) {
    CAPTURE(bad);
    CHECK_FALSE(is_rule(bad));
  }
  CHECK_FALSE(is_rule(std::string("Bash(a\0b)", 9)));
}

TEST_CASE("rules: text behind a rule's parenthesis does not get around the operator's tools") {
  fixture given;
  given.settings.allowed_tools = {"Read", "Bash(git:*)", "mcp__srv"};
  given.settings.mcp_config =
      given.scratch.write("servers.json", R"({"mcpServers":{"srv":{"command":"f"}}})");
  for (const std::string header :
       {"Bash(git:*), Read(x) Bash(*)", "Bash(git:*), Read(x)),Bash(*)", "Read(x) Bash(*)",
        "Read(x),Bash(*)", "Read(x))Bash(*)", "Read((x),Bash(*)", "Read(a(b) Bash",
        "mcp__srv(x) Bash(*)", "mcp__srv__say(x) ,Bash", "Read(x)\tBash", "Read\nBash"}) {
    CAPTURE(header);
    CHECK_THROWS_AS(given.settled(asking_tools(header)), api_error);
  }
}

TEST_CASE(
    "rules: whatever header the proxy takes, the CLI reads the same rules, an argument each") {
  CAPTURE(test::seed());
  test::generator random(31);
  fixture given;
  given.settings.sandbox = sandbox_use::off;
  given.settings.mcp_config =
      given.scratch.write("servers.json", R"({"mcpServers":{"srv":{"command":"f"}}})");
  given.agents().configure("me", "", std::nullopt, strings{});
  const auto accepted = for_each_accepted(given, random, [&](const agent_request& agent) {
    const auto arguments = allowed_arguments(given.settings, agent);
    REQUIRE(arguments == agent.tools);
    REQUIRE(split_by_cli(arguments) == agent.tools);
  });
  CHECK(accepted > 500);
}

TEST_CASE("rules: no header gives the CLI a rule that the operator has not allowed") {
  CAPTURE(test::seed());
  test::generator random(32);
  fixture given;
  given.settings.sandbox = sandbox_use::off;
  given.settings.allowed_tools = {"Read", "Bash(git:*)", "mcp__srv"};
  given.settings.mcp_config =
      given.scratch.write("servers.json", R"({"mcpServers":{"srv":{"command":"f"}}})");
  const auto accepted = for_each_accepted(given, random, [&](const agent_request& agent) {
    for (const auto& rule : split_by_cli(allowed_arguments(given.settings, agent))) {
      CAPTURE(rule);
      const auto name = rule.substr(0, rule.find('('));
      const bool of_server = name == "mcp__srv" || text::starts_with(name, "mcp__srv__");
      REQUIRE((name == "Read" || of_server || rule == "Bash(git:*)"));
    }
  });
  CHECK(accepted > 200);
}

TEST_CASE("rules: the model of the CLI's splitter gives what was seen") {
  CHECK(split_by_cli({"Read(x) Bash(*)"}) == strings{"Read(x)", "Bash(*)"});
  CHECK(split_by_cli({"Read(x)),Bash(*)"}) == strings{"Read(x))", "Bash(*)"});
  CHECK(split_by_cli({"Read(a(b) Bash"}) == strings{"Read(a(b)", "Bash"});
  CHECK(split_by_cli({"mcp__x__y(x) ,Bash"}) == strings{"mcp__x__y(x)", "Bash"});
  CHECK(split_by_cli({"Read(x Bash)"}) == strings{"Read(x Bash)"});
  CHECK(split_by_cli({"Read\tBash", "\nBash\t"}) == strings{"Read\tBash", "Bash"});
  CHECK(split_by_cli({"Read(", "Bash"}) == strings{"Read(", "Bash"});
  CHECK(split_by_cli({"mcp__client,Bash(touch:*)"}) == strings{"mcp__client", "Bash(touch:*)"});
}

TEST_CASE("rules: one that the CLI cannot read is refused of the operator, too") {
  for (auto list : {&options::allowed_tools, &options::disallowed_tools}) {
    options settings;
    settings.*list = {"Read", "Bash(git:*)", "mcp__files__read"};
    CHECK(problems_with(settings).empty());
    for (const std::string bad : {"Read Bash", "Bash(x) Write", "Bash(", "-p", "", "Bash(a(b))"}) {
      CAPTURE(bad);
      settings.*list = {"Read", bad};
      CHECK(problems_with(settings).size() == 1);
    }
  }
}

TEST_CASE("path rules: each sign that a pattern may take in another way matches any character") {
  CHECK(path_rule("Read", "/home/a_b/c-d.e", "") == "Read(//home/a_b/c-d.e)");
  CHECK(path_rule("Edit", "/srv", "/**") == "Edit(//srv/**)");
  CHECK(path_rule("Read", "/a b,c", "") == "Read(//a?b?c)");
  CHECK(path_rule("Read", "/a(b)c", "/**") == "Read(//a?b?c/**)");
  CHECK(path_rule("Read", "/a[b]*?{}!~\\\"'#$", "") == "Read(//a?b???????????\?)");
  CHECK(path_rule("Read", "/\n\t\x7f", "") == "Read(//??\?)");
  CHECK(path_rule("Read", "/\xC3\xA9", "") == "Read(//?\?)");
}

TEST_CASE("path rules: of any path one rule is made, which the CLI reads whole") {
  CAPTURE(test::seed());
  test::generator random(33);
  for (int i = 0; i < 5'000; ++i) {
    const auto path = "/" + random.bytes(30);
    for (const char* below : {"", "/**"}) {
      const auto rule = path_rule("Read", path, below);
      REQUIRE(is_rule(rule));
      REQUIRE(split_by_cli({rule}) == strings{rule});
      REQUIRE(rule.size() ==
              path.size() + std::string("Read(/)").size() + std::string(below).size());
    }
  }
}

TEST_CASE("shell words: a shell reads each as one word, whatever it holds") {
  CAPTURE(test::seed());
  test::generator random(34);
  const child_guard guard;
  const wake_signal never;
  strings words = {"",   "'",  "''", "a b",   "$(id)", "`id`", "$HOME", "*",   "a\nb",
                   "\\", "\"", "-n", ";exit", "'\\''", "#",    "~",     "\xFF"};
  for (int i = 0; i < 200; ++i) words.push_back(random.words(10));
  std::string line;
  std::string expected;
  for (const auto& word : words) {
    line += shell_word(word) + " ";
    expected += word + "|";
  }
  const command shell{{"/bin/sh", "-c", R"(eval "set -- $WORDS"; printf '%s|' "$@")"},
                      {{"PATH", "/usr/bin:/bin"}, {"WORDS", line}},
                      "/"};
  const auto printed = run_command(shell, guard, std::chrono::seconds(60), never);
  CHECK(printed.ending == "exit code 0");
  CHECK(printed.output == expected);
}
