// [04] json_access: bounded parsing and path-carrying reads of untrusted JSON.
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/support.hpp"

using claude_openai::api_error;
using claude_openai::check_json_bounds;
using claude_openai::dump;
using claude_openai::error_kind;
using claude_openai::json;
using claude_openai::max_json_depth;
using claude_openai::max_line_depth;
using claude_openai::parse_body;
using claude_openai::reader;
using claude_openai::try_parse_json;
using test::error_of;

namespace {

std::string repeat(const std::string& piece, std::size_t times) {
  std::string text;
  for (std::size_t i = 0; i < times; ++i) text += piece;
  return text;
}

/// `{"a":` … `1` … `}` so deep.
std::string nested(std::size_t depth) {
  return repeat("{\"a\":", depth) + "1" + repeat("}", depth);
}

std::string object_of(std::size_t members) {
  std::string text = "{";
  for (std::size_t i = 0; i < members; ++i) {
    text += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + "\":1";
  }
  return text + "}";
}

void check_400(const api_error& error, const std::string& words) {
  CHECK(error.kind == error_kind::invalid_request);
  CHECK_MESSAGE(error.message.find(words) != std::string::npos, error.message);
}

/// The `param` of the complaint of a read.
template <class Read>
std::string param_of(const char* text, const Read& read) {
  const json value = json::parse(text);
  const auto error = error_of([&] { read(reader(value)); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK(error.message.find("'" + error.param + "'") == 0);
  return error.param;
}

}  // namespace

TEST_CASE("parse_body: an object is parsed and keeps the order of its members") {
  const auto body = parse_body(" \n{\"z\":1,\"a\":{\"y\":[],\"b\":null}}\t");
  CHECK(dump(body) == R"({"z":1,"a":{"y":[],"b":null}})");
}

TEST_CASE("parse_body: an empty or blank body is a 400 that says so") {
  for (const std::string body : {"", " ", "\r\n\t "}) {
    check_400(error_of([&] { parse_body(body); }), "empty");
  }
}

TEST_CASE("parse_body: a body that is no object is a 400") {
  for (const std::string body : {"[]", "[{}]", "1", "-1.5", "\"text\"", "null", "true"}) {
    CAPTURE(body);
    check_400(error_of([&] { parse_body(body); }), "must be a JSON object");
  }
}

TEST_CASE("parse_body: broken JSON is a 400 that tells the byte") {
  const std::vector<std::pair<std::string, int>> cases = {
      {"{", 2},        {"{\"a\":}", 6},    {"{\"a\" 1}", 6},       {"{\"a\":1,}", 8},
      {"{} x", 4},     {"{}{}", 3},        {"{'a':1}", 2},         {"{\"a\":01}", 7},
      {"{\"a\":1", 7}, {"{\"a\":\"x", 8},  {"{\"a\":tru}", 9},     {"{\"a\":[1,2}", 10},
      {"hello", 1},    {"{\"a\":NaN}", 6}, {"{\"a\":\"\\x\"}", 8}, {"{\"a\":\"\n\"}", 7}};
  for (const auto& each : cases) {
    const auto& body = each.first;
    const auto& byte = each.second;
    CAPTURE(body);
    const auto error = error_of([&, &text = body] { parse_body(text); });
    check_400(error, "not valid JSON");
    check_400(error, "byte " + std::to_string(byte));
    CHECK(error.param.empty());
  }
}

TEST_CASE("parse_body: text that is no UTF-8 is a 400, in names and in values") {
  for (const std::string body : {"{\"a\":\"\xFF\"}", "{\"\xC3\":1}", "{\"a\":\"\xED\xA0\x80\"}",
                                 "{\"a\":\"\xC0\xAF\"}", "\xFF\xFE{"}) {
    CAPTURE(body);
    check_400(error_of([&] { parse_body(body); }), "not valid JSON");
  }
}

TEST_CASE("an escape of half a character is U+FFFD, in names, values and wherever it stands") {
  const std::map<std::string, std::string> mended = {
      {R"({"a":"\ud83d"})", "{\"a\":\"\uFFFD\"}"},
      {R"({"\uDE00b":"\ud83d\ud83d\ude00"})", "{\"\uFFFDb\":\"\uFFFD\U0001F600\"}"},
      {R"({"a":"\\ud83d"})", R"({"a":"\\ud83d"})"},
      {R"({"a":"\ud83d\n\ude00\u00e4"})", "{\"a\":\"\uFFFD\\n\uFFFD\u00E4\"}"}};
  for (const auto& each : mended) {
    CAPTURE(each.first);
    CHECK(parse_body(each.first).dump() == each.second);
    CHECK(try_parse_json(each.first).dump() == each.second);
  }
  for (const char* broken : {R"({"a":"\ud8"})", R"({"a":"\ud83)", R"({"a":"\)"}) {
    check_400(error_of([&] { parse_body(broken); }), "not valid JSON");
  }
}

TEST_CASE("parse_body: a number too large for a double is a 400, not a fault of ours") {
  for (const std::string body : {"{\"a\":1e999}", "{\"a\":[-1e400]}"}) {
    CAPTURE(body);
    CHECK(error_of([&] { parse_body(body); }).kind == error_kind::invalid_request);
  }
}

TEST_CASE("parse_body: escaped and raw text are the same") {
  const auto body = parse_body("{\"a\":\"\\u00e9\\ud83d\\ude00\\u0000\",\"b\":\"é😀\"}");
  CHECK(body["a"].get<std::string>() == std::string("é😀\0", 7));
  CHECK(body["b"].get<std::string>() == "é😀");
}

TEST_CASE("bounds: the deepest allowed body parses, one level more is refused") {
  CHECK(parse_body(nested(max_json_depth)).is_object());
  check_400(error_of([] { parse_body(nested(max_json_depth + 1)); }), "nested too deeply");
  const auto arrays = "{\"a\":" + repeat("[", max_json_depth - 1) + repeat("]", max_json_depth - 1);
  CHECK(parse_body(arrays + "}").is_object());
}

TEST_CASE("bounds: a bomb of brackets is refused and never parsed") {
  for (const std::string bracket : {"[", "{", "{\"a\":", "[{\"a\":"}) {
    CAPTURE(bracket);
    check_400(error_of([&] { parse_body(repeat(bracket, 1'000'000)); }), "nested too deeply");
  }
}

TEST_CASE("bounds: depth is counted by what is open, not by how often something is opened") {
  CHECK_NOTHROW(check_json_bounds("{\"a\":[" + repeat("[],", 1'000) + "[]]}"));
  CHECK_NOTHROW(check_json_bounds(repeat("]", 1'000)));
}

TEST_CASE("bounds: brackets and colons within strings do not count") {
  const auto brackets = repeat("[{", 1'000);
  CHECK_NOTHROW(check_json_bounds("{\"a\":\"" + brackets + "\"}"));
  CHECK_NOTHROW(check_json_bounds("{\"a\":\"\\\"" + brackets + "\"}"));
  CHECK_NOTHROW(check_json_bounds("{\"a\":\"" + repeat(":", 20'000) + "\"}"));
  // After an escaped backslash the string ends, and what follows counts.
  check_400(error_of([&] { check_json_bounds("{\"a\":\"\\\\\"," + brackets); }), "too deeply");
  CHECK_NOTHROW(check_json_bounds("{\"a\":\"\\"));
}

TEST_CASE("bounds: an object of too many members is refused, wherever it is") {
  CHECK(parse_body(object_of(6'000)).size() == 6'000);
  const auto too_many = object_of(7'000);
  check_400(error_of([&] { parse_body(too_many); }), "too many fields");
  check_400(error_of([&] { parse_body("{\"a\":[0," + too_many + "]}"); }), "too many fields");
  const auto behind = "{\"a\":{\"b\":[{}]}," + too_many.substr(1);
  check_400(error_of([&] { parse_body(behind); }), "too many fields");
}

TEST_CASE("bounds: many large objects are refused as one huge one is, many small ones are not") {
  const auto some = object_of(5'000);
  check_400(error_of([&] { parse_body("{\"a\":[" + some + "," + some + "]}"); }),
            "too many fields");
  const auto parsed = parse_body("{\"a\":[" + repeat(object_of(40) + ",", 2'000) + "0]}");
  CHECK(parsed["a"].size() == 2'001);
}

TEST_CASE("bounds: a long array is no object of many members") {
  const auto body = parse_body("{\"a\":[" + repeat("{\"b\":1},", 20'000) + "0]}");
  CHECK(body["a"].size() == 20'001);
}

TEST_CASE("bounds: no body of the largest size takes more than a few seconds") {
  const std::string body = "{\"a\":[0";
  for (const std::size_t members : {10'000U, 4'000U, 1'000U, 100U}) {
    const auto piece = "," + object_of(members);
    std::string whole = body;
    while (whole.size() + piece.size() < 10 * 1024 * 1024) whole += piece;
    whole += "]}";
    const auto start = std::chrono::steady_clock::now();
    try {
      parse_body(whole);
    } catch (const api_error& error) {
      CHECK(error.kind == error_kind::invalid_request);
    }
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
  }
}

TEST_CASE("parse_body: random bodies are parsed or refused with a 400, and nothing else") {
  CAPTURE(test::seed());
  test::generator random(4);
  const std::vector<std::string> pieces = {"{",
                                           "}",
                                           "[",
                                           "]",
                                           ",",
                                           ":",
                                           "\"",
                                           "\\",
                                           "\"a\"",
                                           "\"messages\"",
                                           "\"role\":\"user\"",
                                           "1",
                                           "-",
                                           "1e400",
                                           "1e-400",
                                           "0.1",
                                           "null",
                                           "true",
                                           "\\u",
                                           "d83d",
                                           "\xF0\x9F",
                                           "\xFF",
                                           " ",
                                           "\n",
                                           "\0",
                                           "18446744073709551616",
                                           "\"content\":[",
                                           "{\"a\":"};
  std::size_t parsed = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string body = random.chance(70) ? "{" : "";
    for (std::size_t n = random.below(12); n > 0; --n) body += random.pick(pieces);
    if (random.chance(30)) body += "\"a\":1";
    if (random.chance(70)) body += "}";
    CAPTURE(body);
    try {
      const auto value = parse_body(body);
      REQUIRE(value.is_object());
      ++parsed;
    } catch (const api_error& error) {
      REQUIRE(error.kind == error_kind::invalid_request);
      REQUIRE_FALSE(error.message.empty());
    }
  }
  CHECK(parsed > 100);
}

TEST_CASE("parse_body: a valid body with any one byte changed is parsed or refused with a 400") {
  CAPTURE(test::seed());
  test::generator random(5);
  const std::string valid = R"({"model":"m","messages":[{"role":"user","content":"é\u00e9\n"}],)"
                            R"("n":-1.5e3,"x":[true,null]})";
  std::size_t refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    auto body = valid;
    body[random.below(body.size())] = static_cast<char>(random.below(256));
    CAPTURE(body);
    try {
      const auto value = parse_body(body);
      REQUIRE(value.is_object());
    } catch (const api_error& error) {
      REQUIRE(error.kind == error_kind::invalid_request);
      ++refused;
    }
  }
  CHECK(refused > 1'000);
}

TEST_CASE("dump: text that is no UTF-8 becomes U+FFFD instead of an exception") {
  CHECK(dump(json("a\xFFz")) == "\"a\xEF\xBF\xBDz\"");
  CHECK(dump(json("é\n\"\\\x01")) == "\"é\\n\\\"\\\\\\u0001\"");
  CHECK(dump(json::parse(R"({"b":1,"a":[1.5,null,true]})")) == R"({"b":1,"a":[1.5,null,true]})");
}

TEST_CASE("reader: a null field counts as absent") {
  const json value = json::parse(R"({"a":null,"b":0,"c":false,"d":""})");
  const reader root(value);
  CHECK_FALSE(root.find("a"));
  CHECK_FALSE(root.find("missing"));
  CHECK(root.find("b"));
  CHECK(root.find("c"));
  CHECK(root.find("d"));
  CHECK(error_of([&] { root.require("a"); }).param == "a");
}

TEST_CASE("reader: a path names members by dots and elements by brackets, from the root") {
  const json value = json::parse(R"({"messages":[0,1,2,{"content":[{"text":7}]}]})");
  const auto parts = reader(value).require("messages").elements();
  REQUIRE(parts.size() == 4);
  CHECK(parts[3].path() == "messages[3]");
  const auto text = parts[3].require("content").elements().at(0).require("text");
  CHECK(text.path() == "messages[3].content[0].text");
  CHECK(error_of([&] { text.string(); }).param == "messages[3].content[0].text");
  CHECK(error_of([&] { parts[0].find("x"); }).param == "messages[0]");
  CHECK(error_of([&] { parts[3].require("role"); }).param == "messages[3].role");
  CHECK(error_of([&] { parts[3].require("role"); }).message == "'messages[3].role' is required");
}

TEST_CASE("reader: the root of a path is called the body, unless it has a name") {
  const json value = 1;
  CHECK(error_of([&] { reader(value).find("a"); }).param == "body");
  CHECK(error_of([&] { reader(value, "model").string(); }).param == "model");
}

TEST_CASE("reader: each type takes its own kind of JSON and no other") {
  const auto kinds = json::parse(R"({"s":"x","b":true,"i":1,"f":1.5,"a":[],"o":{}})");
  for (const auto& each : kinds.items()) {
    const auto& name = each.key();
    const auto& value = each.value();
    CAPTURE(name);
    const reader one(value, "field");
    const auto takes = [&](auto&& read) {
      try {
        read();
        return true;
      } catch (const api_error& error) {
        CHECK(error.param == "field");
        return false;
      }
    };
    CHECK(takes([&] { one.string(); }) == (name == "s"));
    CHECK(takes([&] { one.boolean(); }) == (name == "b"));
    CHECK(takes([&] { one.integer(-5, 5); }) == (name == "i"));
    CHECK(takes([&] { one.number(-5, 5); }) == (name == "i" || name == "f"));
    CHECK(takes([&] { one.elements(); }) == (name == "a"));
    CHECK(takes([&] { one.find("x"); }) == (name == "o"));
    CHECK(one.is_string() == (name == "s"));
    CHECK(one.is_array() == (name == "a"));
  }
}

TEST_CASE("reader: numbers may be their bounds and nothing beyond") {
  const auto accepts = [](const char* text, double low, double high) {
    const json value = json::parse(text);
    try {
      reader(value, "n").number(low, high);
      return true;
    } catch (const api_error& error) {
      CHECK(error.message.find("must be between") != std::string::npos);
      return false;
    }
  };
  CHECK(accepts("0", 0, 2));
  CHECK(accepts("2", 0, 2));
  CHECK(accepts("2.0", 0, 2));
  CHECK(accepts("-0.0", 0, 2));
  CHECK_FALSE(accepts("2.0000000001", 0, 2));
  CHECK_FALSE(accepts("-1e-9", 0, 2));
  CHECK_FALSE(accepts("1e308", 0, 2));
}

TEST_CASE("reader: integers may be their bounds and nothing beyond, nor wrap around") {
  const auto read = [](const char* text, std::int64_t low, std::int64_t high) {
    const json value = json::parse(text);
    try {
      reader(value, "n").integer(low, high);
      return true;
    } catch (const api_error& error) {
      CHECK(error.param == "n");
      return false;
    }
  };
  constexpr auto least = std::numeric_limits<std::int64_t>::min();
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  CHECK(read("1", 1, 3));
  CHECK(read("3", 1, 3));
  CHECK_FALSE(read("0", 1, 3));
  CHECK_FALSE(read("4", 1, 3));
  CHECK_FALSE(read("1.0", 1, 3));
  CHECK(read("9223372036854775807", least, most));
  CHECK(read("-9223372036854775808", least, most));
  CHECK_FALSE(read("9223372036854775808", least, most));
  CHECK_FALSE(read("18446744073709551615", least, most));
  CHECK_FALSE(read("18446744073709551615", -5, 5));
  CHECK_FALSE(read("18446744073709551616", least, most));
}

TEST_CASE("reader: a complaint about a range tells the range") {
  CHECK(param_of("3", [](const reader& r) { r.number(0, 2); }) == "body");
  const json three = 3;
  CHECK(error_of([&] { reader(three, "top_p").number(0, 1); }).message.find("0.0 and 1.0") !=
        std::string::npos);
  CHECK(error_of([&] { reader(three, "n").integer(-1, 2); }).message.find("-1 and 2") !=
        std::string::npos);
}

TEST_CASE("trusted reads never throw: a wrong shape gives the neutral value") {
  const auto object = json::parse(R"({"s":"x","i":7,"f":530.597,"b":true,"n":null,"a":[1]})");
  CHECK(claude_openai::string_of(object, "s") == "x");
  CHECK(claude_openai::string_of(object, "i").empty());
  CHECK(claude_openai::string_of(object, "missing").empty());
  CHECK(claude_openai::integer_of(object, "i") == 7);
  CHECK(claude_openai::integer_of(object, "f") == 530);
  CHECK(claude_openai::integer_of(object, "s") == 0);
  CHECK(claude_openai::integer_of(object, "n") == 0);
  CHECK(claude_openai::boolean_of(object, "b"));
  CHECK_FALSE(claude_openai::boolean_of(object, "i"));
  CHECK_FALSE(claude_openai::boolean_of(object, "missing"));
  CHECK(claude_openai::member_of(object, "a").is_array());
  CHECK(claude_openai::member_of(object, "missing").is_null());
  for (const std::string text : {"null", "1", "\"s\"", "[1]", "[{\"s\":\"x\"}]"}) {
    CAPTURE(text);
    const auto other = json::parse(text);
    CHECK(claude_openai::member_of(other, "s").is_null());
    CHECK(claude_openai::string_of(other, "s").empty());
  }
}

TEST_CASE("trusted reads: a number beyond 64 bits does no harm") {
  const auto object = json::parse(R"({"f":1e300,"g":-1e300,"u":18446744073709551615})");
  constexpr std::int64_t most = 1'000'000'000'000'000;
  CHECK(claude_openai::integer_of(object, "u") == most);
  CHECK(claude_openai::integer_of(object, "f") == most);
  CHECK(claude_openai::integer_of(object, "g") == -most);
}

TEST_CASE("json: more values than a request can mean are refused before they take memory") {
  std::string many = "{\"a\":[0";
  for (int i = 0; i < 300'001; ++i) many += ",0";
  CHECK(http_status(test::error_of([&] { claude_openai::parse_body(many + "]}"); }).kind) == 400);
  std::string some = "{\"a\":[0";
  for (int i = 0; i < 200'000; ++i) some += ",0";
  CHECK_NOTHROW(claude_openai::parse_body(some + "]}"));
}

TEST_CASE(
    "try_parse_json: what a model or the CLI wrote is parsed within the bounds, else discarded") {
  CHECK(dump(try_parse_json(R"({"a":[1]})")) == R"({"a":[1]})");
  CHECK(try_parse_json(nested(max_json_depth)).is_object());
  CHECK(try_parse_json(nested(max_json_depth + 1)).is_discarded());
  CHECK(try_parse_json(nested(max_line_depth), max_line_depth).is_object());
  for (const std::string bracket : {"[", "{\"a\":"}) {
    CHECK(try_parse_json(repeat(bracket, 1'000'000)).is_discarded());
  }
  for (const std::string broken : {"", "{", "{\"a\":1e999}"})
    CHECK(try_parse_json(broken).is_discarded());
}

TEST_CASE("bounds: the values are counted, since each takes memory whatever its text's length") {
  CHECK(check_json_bounds("{}") <= 1);
  CHECK(check_json_bounds("{\"a\":[" + repeat("0,", 1'000) + "0]}") > 1'000);
  CHECK(check_json_bounds("{\"a\":\"" + repeat(",", 1'000) + "\"}") < 10);
}
