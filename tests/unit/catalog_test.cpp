// [10] catalog: the models a client may name.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;

namespace {

strings ids_of(const std::vector<model_entry>& catalog) {
  strings ids;
  for (const auto& entry : catalog) ids.push_back(entry.id);
  return ids;
}

}  // namespace

TEST_CASE("catalog: the operator's model, then the CLI's, then the well-known ones") {
  const auto ids = ids_of(make_catalog("mine", {"reported-b", "reported-a"}));
  REQUIRE(ids.size() == 3 + well_known_models.size());
  CHECK(strings(ids.begin(), ids.begin() + 3) == strings{"mine", "reported-b", "reported-a"});
  CHECK(std::equal(well_known_models.begin(), well_known_models.end(), ids.begin() + 3));
}

TEST_CASE("catalog: each id is listed once, at its first place") {
  const auto ids =
      ids_of(make_catalog("sonnet", {"claude-haiku-4-5-20251001", "sonnet", "x", "x", "haiku"}));
  CHECK(strings(ids.begin(), ids.begin() + 4) ==
        strings{"sonnet", "claude-haiku-4-5-20251001", "x", "haiku"});
  CHECK(std::set<std::string>(ids.begin(), ids.end()).size() == ids.size());
}

TEST_CASE("catalog: without a CLI there are the operator's model and the well-known ones") {
  const auto ids = ids_of(make_catalog("mine", {}));
  CHECK(ids.size() == 1 + well_known_models.size());
  for (const std::string known :
       {"claude-sonnet-4-5-20250929", "claude-opus-4-5-20251101", "sonnet"}) {
    CHECK(std::count(ids.begin(), ids.end(), known) == 1);
  }
}

TEST_CASE("catalog: the date at the end of an id is its time, at midnight UTC") {
  CHECK(release_time("claude-sonnet-4-5-20250929") == 1'759'104'000);
  CHECK(release_time("x-19700101") == 0);
  CHECK(release_time("x-20240229") == 1'709'164'800);
  CHECK(release_time("x-20251231") == 1'767'139'200);
}

TEST_CASE("catalog: an id without a date has no time") {
  for (const std::string id :
       {"", "sonnet", "-", "20250929", "x-2025092", "x-202509290", "x-2025-09-29", "x-2025092a",
        "x-20250929[1m]", "x-20250929-v1:0", "x20250929"}) {
    CAPTURE(id);
    CHECK(release_time(id) == 0);
  }
}

TEST_CASE("catalog: a model has OpenAI's fields") {
  CHECK(
      dump(render_model({"claude-x-20250929", 1'759'104'000})) ==
      R"({"id":"claude-x-20250929","object":"model","created":1759104000,"owned_by":"anthropic"})");
}

TEST_CASE("catalog: the list has OpenAI's fields and keeps the order") {
  CHECK(dump(render_models({{"b", 2}, {"a", 1}})) ==
        R"({"object":"list","data":[)"
        R"({"id":"b","object":"model","created":2,"owned_by":"anthropic"},)"
        R"({"id":"a","object":"model","created":1,"owned_by":"anthropic"}]})");
  CHECK(dump(render_models({})) == R"({"object":"list","data":[]})");
}

TEST_CASE("catalog: every id that it lists is one that a request may name") {
  for (const auto& entry : make_catalog("sonnet", {"sonnet[1m]", "opus"})) {
    const json id = entry.id;
    CHECK(parse_model(reader(id, "model")) == entry.id);
  }
}
