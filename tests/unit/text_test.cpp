// [01] text: splitting, UTF-8, identifiers, times.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

namespace text = claude_openai::text;
using namespace std::string_literals;
using strings = std::vector<std::string>;

namespace {

/// An independent decoder, by code points and not by bytes: the length of the sequence at the
/// front when it is the shortest way to write a Unicode scalar value, else 0.
std::size_t scalar_length(const std::string& bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
  if (bytes.empty()) return 0;
  std::size_t length = 1;
  std::uint32_t value = byte(0);
  if ((byte(0) >> 5) == 0x06)
    length = 2, value = byte(0) & 0x1FU;
  else if ((byte(0) >> 4) == 0x0E)
    length = 3, value = byte(0) & 0x0FU;
  else if ((byte(0) >> 3) == 0x1E)
    length = 4, value = byte(0) & 0x07U;
  else if (byte(0) > 0x7F)
    return 0;
  if (bytes.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) >> 6) != 0x02) return 0;
    value = (value << 6) | (byte(i) & 0x3FU);
  }
  const std::uint32_t shortest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < shortest[length] || value > 0x10FFFF) return 0;
  if (value >= 0xD800 && value <= 0xDFFF) return 0;
  return length;
}

bool is_utf8(std::string bytes) {
  while (!bytes.empty()) {
    const auto length = scalar_length(bytes);
    if (length == 0) return false;
    bytes.erase(0, length);
  }
  return true;
}

const std::string replacement = "\xEF\xBF\xBD";

}  // namespace

TEST_CASE("text: a prefix is found at the front only") {
  CHECK(text::starts_with("abc", "ab"));
  CHECK(text::starts_with("abc", "abc"));
  CHECK(text::starts_with("abc", ""));
  CHECK(text::starts_with("", ""));
  CHECK_FALSE(text::starts_with("ab", "abc"));
  CHECK_FALSE(text::starts_with("xab", "ab"));
}

TEST_CASE("text: trim takes spaces, tabs and line ends from both ends and nothing else") {
  CHECK(text::trim(" \t\r\n a b \n") == "a b");
  CHECK(text::trim("a") == "a");
  CHECK(text::trim("") == "");
  CHECK(text::trim(" \t\r\n").empty());
  CHECK(text::trim("\va\f") == "\va\f");
  CHECK(text::trim("\0a"s) == "\0a"s);
  CHECK(text::trim("\xC2\xA0x") == "\xC2\xA0x");
}

TEST_CASE("text: split gives trimmed pieces and drops empty ones") {
  CHECK(text::split("a,b,c", ',') == strings{"a", "b", "c"});
  CHECK(text::split(" a , b ", ',') == strings{"a", "b"});
  CHECK(text::split(",,a,,", ',') == strings{"a"});
  CHECK(text::split("a", ',') == strings{"a"});
  CHECK(text::split("", ',').empty());
  CHECK(text::split(",", ',').empty());
  CHECK(text::split(" , \t,", ',').empty());
  CHECK(text::split("a b", ',') == strings{"a b"});
}

TEST_CASE("text: join puts the separator between pieces only, empty pieces included") {
  CHECK(text::join({}, ", ").empty());
  CHECK(text::join({"a"}, ", ") == "a");
  CHECK(text::join({"a", "b"}, ", ") == "a, b");
  CHECK(text::join({"", ""}, "-") == "-");
  CHECK(text::join({"a", "b"}, "") == "ab");
}

TEST_CASE("text: lower case is for ASCII letters and leaves all other bytes") {
  CHECK(text::to_lower("AbZ@[`{09-Ä") == "abz@[`{09-Ä");
  CHECK(text::to_lower("").empty());
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  const auto lower = text::to_lower(all);
  for (std::size_t c = 0; c < 256; ++c) {
    const bool upper = c >= 'A' && c <= 'Z';
    CHECK(static_cast<std::uint8_t>(lower[c]) == (upper ? c + 32 : c));
  }
}

TEST_CASE("text: a number is digits and nothing else") {
  CHECK(text::try_number<int>("0") == 0);
  CHECK(text::try_number<int>("007") == 7);
  CHECK(text::try_number<int>("-5") == -5);
  CHECK(text::try_number<int>("-0") == 0);
  for (const std::string wrong :
       {"", "-", "+5", " 5", "5 ", "5a", "0x10", "1e3", "1.0", "--5", "5-", "１"}) {
    CAPTURE(wrong);
    CHECK_FALSE(text::try_number<int>(wrong));
  }
  CHECK_FALSE(text::try_number<int>("1\0"s));
  CHECK_FALSE(text::try_number<unsigned>("-5"));
  CHECK_FALSE(text::try_number<unsigned>("-0"));
}

TEST_CASE("text: a number that its type cannot hold is none") {
  CHECK(text::try_number<int>("2147483647") == 2147483647);
  CHECK_FALSE(text::try_number<int>("2147483648"));
  CHECK(text::try_number<int>("-2147483647") == -2147483647);
  CHECK_FALSE(text::try_number<int>("-2147483649"));
  CHECK(text::try_number<std::int64_t>("9223372036854775807") ==
        std::numeric_limits<std::int64_t>::max());
  CHECK_FALSE(text::try_number<std::int64_t>("9223372036854775808"));
  CHECK(text::try_number<std::uint64_t>("18446744073709551615") ==
        std::numeric_limits<std::uint64_t>::max());
  CHECK_FALSE(text::try_number<std::uint64_t>("18446744073709551616"));
  CHECK_FALSE(text::try_number<std::uint64_t>("99999999999999999999999"));
}

TEST_CASE("text: every small number reads back as itself") {
  for (int number = -300; number <= 300; ++number) {
    const auto in_byte = number >= -127 && number <= 127;
    const auto read = text::try_number<std::int8_t>(std::to_string(number));
    if (in_byte) CHECK(read == number);
    if (number < -128 || number > 127) CHECK_FALSE(read);
    CHECK(text::try_number<int>(std::to_string(number)) == number);
  }
}

TEST_CASE("text: UTF-8 sequences are as long as RFC 3629 says") {
  CHECK(text::utf8_sequence_length("") == 0);
  CHECK(text::utf8_sequence_length("\0"s) == 1);
  CHECK(text::utf8_sequence_length("a") == 1);
  CHECK(text::utf8_sequence_length("é!") == 2);
  CHECK(text::utf8_sequence_length("€!") == 3);
  CHECK(text::utf8_sequence_length("😀!") == 4);
}

TEST_CASE("text: overlong, surrogate, too high, cut and lone bytes are no UTF-8") {
  for (const std::string wrong : {"\x80",
                                  "\xBF",
                                  "\xC0\x80",
                                  "\xC1\xBF",
                                  "\xC2",
                                  "\xC2\x41",
                                  "\xE0\x80\x80",
                                  "\xE0\x9F\xBF",
                                  "\xE2\x82",
                                  "\xE2",
                                  "\xED\xA0\x80",
                                  "\xED\xBF\xBF",
                                  "\xF0\x80\x80\x80",
                                  "\xF0\x8F\xBF\xBF",
                                  "\xF0\x9F\x98",
                                  "\xF4\x90\x80\x80",
                                  "\xF5\x80\x80\x80",
                                  "\xF8\x88\x80\x80\x80",
                                  "\xFE",
                                  "\xFF"}) {
    CAPTURE(wrong);
    CHECK(text::utf8_sequence_length(wrong) == 0);
  }
}

TEST_CASE("text: the first and last code points of every length are UTF-8") {
  for (const std::string right :
       {"\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CAPTURE(right);
    CHECK(text::utf8_sequence_length(right) == std::string(right).size());
    CHECK(text::repair_utf8(right) == right);
  }
}

TEST_CASE("text: every pair of bytes, with every kind of tail, is judged as by code points") {
  const strings tails = {"", "\x80", "\xBF", "\x41", "\x80\x80", "\xBF\xBF", "\x80\x41"};
  std::size_t wrong = 0;
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      for (const auto& tail : tails) {
        const auto bytes = std::string{static_cast<char>(first), static_cast<char>(second)} + tail;
        wrong += text::utf8_sequence_length(bytes) != scalar_length(bytes) ? 1 : 0;
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("text: repair keeps what is well-formed and replaces byte by byte what is not") {
  CHECK(text::repair_utf8("").empty());
  CHECK(text::repair_utf8("Grüße 😀\n\0 end"s) == "Grüße 😀\n\0 end"s);
  CHECK(text::repair_utf8("a\xFF"
                          "b") == "a" + replacement + "b");
  CHECK(text::repair_utf8("\xE2\x82") == replacement + replacement);
  CHECK(text::repair_utf8("\xC3" + "é"s) == replacement + "é");
  CHECK(text::repair_utf8("\xED\xA0\x80") == replacement + replacement + replacement);
  CHECK(text::repair_utf8("\xF0\x9F\x98"
                          "a") == replacement + replacement + replacement + "a");
}

TEST_CASE("text: repaired random bytes are UTF-8, and repairing again changes nothing") {
  CAPTURE(test::seed());
  test::generator random(1);
  for (int i = 0; i < 5'000; ++i) {
    const auto bytes = random.bytes(24);
    const auto repaired = text::repair_utf8(bytes);
    CAPTURE(bytes);
    REQUIRE(is_utf8(repaired));
    REQUIRE(text::repair_utf8(repaired) == repaired);
    if (is_utf8(bytes)) REQUIRE(repaired == bytes);
  }
}

TEST_CASE("text: base64 has the vectors of RFC 4648") {
  const std::vector<std::pair<std::string, std::string>> vectors = {{"", ""},
                                                                    {"f", "Zg=="},
                                                                    {"fo", "Zm8="},
                                                                    {"foo", "Zm9v"},
                                                                    {"foob", "Zm9vYg=="},
                                                                    {"fooba", "Zm9vYmE="},
                                                                    {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, encoded] : vectors) {
    const auto& tried = bytes;
    CAPTURE(tried);
    CHECK(text::to_base64(bytes) == encoded);
    CHECK(text::from_base64(encoded) == bytes);
    CHECK(text::is_base64(encoded) == !encoded.empty());
  }
  CHECK(text::to_base64("\xFB\xEF\xBE\xFF"s) == "++++/w==");
  CHECK(text::from_base64("+/+/") == "\xFB\xFF\xBF"s);
}

TEST_CASE("text: base64 takes every byte at every place, with padding and without") {
  for (int byte = 0; byte < 256; ++byte) {
    for (std::size_t length = 1; length <= 4; ++length) {
      for (std::size_t place = 0; place < length; ++place) {
        std::string bytes(length, 'U');
        bytes[place] = static_cast<char>(byte);
        auto encoded = text::to_base64(bytes);
        REQUIRE(encoded.size() == (length + 2) / 3 * 4);
        REQUIRE(text::is_base64(encoded));
        REQUIRE(text::from_base64(encoded) == bytes);
        encoded.erase(std::min(encoded.find('='), encoded.size()));
        REQUIRE(text::is_base64(encoded));
        REQUIRE(text::from_base64(encoded) == bytes);
      }
    }
  }
}

TEST_CASE("text: base64 of random bytes of any length reads back as them") {
  test::generator random(15);
  for (std::size_t round = 0; round < 400; ++round) {
    const auto bytes = random.bytes(round);
    REQUIRE(text::from_base64(text::to_base64(bytes)) == bytes);
  }
}

TEST_CASE("text: what is not in the alphabet, or of an impossible length, is no base64") {
  for (const std::string wrong : {"", "=", "==", "A", "A===", "AAAAA", "AA===", "AA=A", "AA A",
                                  "AA\n", "AA-_", "AAA*", "\xC3\xA9\xC3\xA9"}) {
    CAPTURE(wrong);
    CHECK_FALSE(text::is_base64(wrong));
  }
  for (const std::string right : {"AA", "AA==", "AA=", "AAA", "AAA=", "AAAA", "+/+/", "09az"}) {
    CAPTURE(right);
    CHECK(text::is_base64(right));
  }
}

TEST_CASE("text: the constant-time comparison says what a plain one does") {
  const strings samples = {"",
                           "a",
                           "b",
                           "ab",
                           "abab",
                           "aba",
                           "ba",
                           "secret",
                           "secreT",
                           "Secret",
                           "secretsecret",
                           "secre",
                           "\0"s,
                           "\0\0"s,
                           "a\0"s,
                           "\x80",
                           "\xFF",
                           std::string(1000, 'x'),
                           std::string(1001, 'x')};
  for (const auto& presented : samples) {
    for (const auto& secret : samples) {
      CAPTURE(presented);
      CAPTURE(secret);
      CHECK(text::constant_time_equal(presented, secret) == (presented == secret));
    }
  }
}

TEST_CASE("text: the comparison sees every single bit") {
  const std::string secret = "sk-local-0123456789";
  for (std::size_t i = 0; i < secret.size(); ++i) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      auto other = secret;
      other[i] = static_cast<char>(static_cast<unsigned char>(other[i]) ^ (1U << bit));
      CHECK_FALSE(text::constant_time_equal(other, secret));
    }
  }
}

TEST_CASE("text: random ids have the prefix, the length and the alphabet, and differ") {
  CHECK(text::random_id("", 0).empty());
  CHECK(text::random_id("req_", 0) == "req_");
  std::set<std::string> seen;
  std::set<char> used;
  for (int i = 0; i < 500; ++i) {
    const auto id = text::random_id("req_", 24);
    REQUIRE(id.size() == 28);
    REQUIRE(text::starts_with(id, "req_"));
    for (const char c : id.substr(4)) {
      REQUIRE(std::isalnum(static_cast<unsigned char>(c)) != 0);
      used.insert(c);
    }
    seen.insert(id);
  }
  CHECK(seen.size() == 500);
  CHECK(used.size() == 62);
}

TEST_CASE("text: times are ISO 8601 in UTC with milliseconds") {
  using namespace std::chrono;
  const auto at = [](std::int64_t ms) {
    return text::iso_time(
        system_clock::time_point(duration_cast<system_clock::duration>(milliseconds(ms))));
  };
  CHECK(at(0) == "1970-01-01T00:00:00.000Z");
  CHECK(at(1'795'370'974'356) == "2026-11-22T18:09:34.356Z");
  CHECK(at(1'795'370'974'007) == "2026-11-22T18:09:34.007Z");
  CHECK(at(951'782'400'999) == "2000-02-29T00:00:00.999Z");
}
