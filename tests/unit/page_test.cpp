// [xx] page: the page at /.
#include <string>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

std::size_t count_of(const std::string& text, const std::string& what) {
  std::size_t count = 0;
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("fill_in replaces every placeholder of that name, and nothing else") {
  CHECK(page::fill_in("{{a}} or {{a}}, {{b}} {a}", "a", "x{{a}}") == "x{{a}} or x{{a}}, {{b}} {a}");
  CHECK(page::fill_in("", "a", "x").empty());
  CHECK(page::fill_in("{{a", "a", "x") == "{{a");
}

TEST_CASE("the page is whole: every placeholder is filled, and it keeps below 64.2 kB") {
  for (const bool keyed : {false, true}) {
    const auto html = page::render("0123456789abcdef0123456789abcdef", keyed);
    CHECK(html.size() <= 64800);
    CHECK(html.rfind("<!doctype html>", 0) == 0);
    CHECK(html.find("{{") == std::string::npos);
    CHECK(html.substr(html.size() - 8) == "</html>\n");
    CHECK(count_of(html, "v" CLAUDE_OPENAI_VERSION "<") == 1);
    const std::string needed = keyed ? "true" : "false";
    CHECK(count_of(html, "data-key-required=\"" + needed + "\"") == 1);
  }
}

TEST_CASE("recipes stand in the page as they are: nothing in them ends or fills a template") {
  for (const auto& client : client_recipes) {
    for (const std::string text : {client.title, client.file, client.settings, client.start}) {
      CAPTURE(text);
      CHECK(text.find_first_of("`\\") == std::string::npos);
      CHECK(text.find("${") == std::string::npos);
    }
  }
}

TEST_CASE("every style and script of the page carries the nonce") {
  const auto html = page::render("n0nce", false);
  CHECK(count_of(html, "<style") == count_of(html, "<style nonce=\"n0nce\">"));
  CHECK(count_of(html, "<script") ==
        count_of(html, "<script nonce=\"n0nce\">") +
            count_of(html, "<script type=\"module\" nonce=\"n0nce\">"));
  CHECK(count_of(html, "nonce=\"n0nce\"") == 3);
}

TEST_CASE("the policy allows what carries the nonce, and this server") {
  CHECK(page::content_security_policy("n0nce") ==
        "default-src 'none'; script-src 'nonce-n0nce'; style-src 'nonce-n0nce'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'");
}
