#include "model/regex.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Matches(absl::string_view pattern, const std::string& text) {
  const absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  if (!regex.ok()) {
    ADD_FAILURE() << regex.status();
    return {};
  }
  const absl::StatusOr<std::vector<ByteRange>> ranges = regex->FindAll(text);
  if (!ranges.ok()) {
    ADD_FAILURE() << ranges.status();
    return {};
  }
  std::vector<std::string> matches;
  for (const ByteRange range : *ranges) {
    matches.push_back(text.substr(range.begin, range.end - range.begin));
  }
  return matches;
}

TEST(RegexTest, FindsMatchesFromLeftToRight) {
  EXPECT_THAT(Matches("\\p{N}{1,3}", "12345 a6"), ElementsAre("123", "45", "6"));
  EXPECT_THAT(Matches("[^\\s\\p{L}]+|\\p{Lu}", "a B!\u00DF\u00C4?"),
              ElementsAre("B", "!", "\u00C4", "?"));
  EXPECT_THAT(Matches("x", "abc"), ElementsAre());
  EXPECT_THAT(Matches("x", ""), ElementsAre());
}

TEST(RegexTest, WhiteSpaceIsUnicodes) {
  EXPECT_THAT(Matches("\\s+", "a\t\v\u0085\u00A0\u1680\u2003\u2028\u202F\u205F\u3000b\u180E\u200B"),
              ElementsAre("\t\v\u0085\u00A0\u1680\u2003\u2028\u202F\u205F\u3000"));
  EXPECT_THAT(Matches("[\\s]", "\u180E \uFEFF"), ElementsAre(" "));
  EXPECT_THAT(Matches("\\S+", "\u180E\u3000b"), ElementsAre("\u180E", "b"));
}

TEST(RegexTest, LookaheadKeepsTheLastSpaceForTheNextWord) {
  EXPECT_THAT(Matches("\\s+(?!\\S)|\\s+", "a   b  "), ElementsAre("  ", " ", "  "));
}

TEST(RegexTest, AnchorsAreThoseOfLines) {
  EXPECT_THAT(Matches("^a", "a\nab\ra"), ElementsAre("a", "a"));
}

TEST(RegexTest, RefusesByNameWhatTheLibrariesReadDifferently) {
  for (const auto& [pattern, named] : std::vector<std::pair<std::string, std::string>>{
           {"\\w+", "\\w"},
           {"a\\b", "\\b"},
           {"\\h", "\\h"},
           {"[\\S]", "\\S"},
           {"\\p{Han}", "\\p{Han}"},
           {"\\pL", "\\p without {}"},
           {"[a&&b]", "&&"},
           {"[a[bc]]", "a class within a class"},
           {"[]a]", "] at a class's start"},
           {"(?i:a)", "(?i"},
           {"(?<name>a)", "(?<"},
           {"(*COMMIT)a", "(*"},
           {"a{,3}", "{"},
           {"a{1,3}+", "followed by +"},
           {"(a)\\1", "\\1"},
           {"a\\", "stray backslash"},
       }) {
    const absl::Status status = Regex::Compile(pattern).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << pattern;
  }
}

TEST(RegexTest, RefusesWhatIsNoPatternOrMatchesNothing) {
  for (const char* pattern : {"(a", "[a", "a**", "*a", "\\p{Xx}", "", "a*", "(?=a)", "\xFF"}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
  }
}

TEST(RegexTest, LongTextsNeedNoDeepStack) {
  // A group that is repeated keeps a record for each turn, past what the first stack holds.
  const std::string text(1 << 17, 'a');
  EXPECT_THAT(Matches("(?:a|b)+c|a+", text), ElementsAre(text));
}

TEST(RegexTest, EndlessBacktrackingIsAnError) {
  const absl::StatusOr<Regex> regex = Regex::Compile("(?:(?:a|a)+)+b");
  ASSERT_TRUE(regex.ok()) << regex.status();
  EXPECT_EQ(regex->FindAll(std::string(1000, 'a') + "cb").status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace caravan
