#include "coordinator/openai/stop_matcher.h"

#include <algorithm>
#include <optional>
#include <random>

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// All that stays of `pieces`, pushed one by one, and then the end.
std::string Keep(StopMatcher& matcher, const std::vector<std::string>& pieces) {
  std::string kept;
  for (const std::string& piece : pieces) kept += matcher.Push(piece);
  if (!matcher.stopped()) kept += matcher.Flush();
  return kept;
}

TEST(StopMatcherTest, WithoutStopStringsAllStaysAtOnce) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Push(""), "");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcherTest, CutsBeforeTheStringAndDropsTheRest) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("go stop go"), "go ");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.Push("more"), "");
}

TEST(StopMatcherTest, FindsAStringThatIsSplit) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("go s"), "go ");
  EXPECT_EQ(matcher.Push("t"), "");
  EXPECT_EQ(matcher.Push("o"), "");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.Push("p!"), "");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcherTest, LetsGoOfWhatOnlyLookedLikeIt) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("sto"), "");
  EXPECT_EQ(matcher.Push("re"), "store");
  EXPECT_EQ(matcher.Push("st"), "");
  EXPECT_EQ(matcher.Flush(), "st");
  // A new text: what was flushed is not its beginning.
  EXPECT_EQ(matcher.Push("op"), "op");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcherTest, FindsAStringWithinItsOwnBeginning) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aaa"), "a");
  EXPECT_EQ(matcher.Push("b"), "");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcherTest, OfSeveralTheFirstToBecomeWholeCounts) {
  StopMatcher matcher({"bcd", "c"});
  EXPECT_EQ(matcher.Push("abcd"), "ab");
}

TEST(StopMatcherTest, OfSeveralThatEndTogetherTheLongestCounts) {
  StopMatcher matcher({"c", "abc", "bc"});
  EXPECT_EQ(matcher.Push("xabc"), "x");
}

TEST(StopMatcherTest, FindsCharactersWhoseBytesAreSplit) {
  StopMatcher matcher({"\u4F60\u597D"});  // E4 BD A0 E5 A5 BD
  EXPECT_EQ(Keep(matcher, {"a\u4F60", "\xE5\xA5", "\xBD", "b"}), "a");
  EXPECT_TRUE(matcher.stopped());
  // Another character that begins alike is released whole.
  StopMatcher other({"\u4F60"});
  EXPECT_EQ(Keep(other, {"\xE4\xBD", "\xA1"}), "\u4F61");
  EXPECT_FALSE(other.stopped());
}

/// The slow and obvious way: what lies before the stop string that ends first.
std::optional<std::string> CutByHand(const std::string& text,
                                     const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return std::nullopt;
}

TEST(StopMatcherTest, IsRightHoweverTheTextIsCutIntoPieces) {
  std::mt19937 random(7);
  const auto draw = [&](size_t below) { return static_cast<size_t>(random() % below); };
  const auto text_of = [&](size_t size) {
    std::string text;
    while (text.size() < size) text.push_back("ab"[draw(2)]);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i <= draw(3); ++i) stops.push_back(text_of(1 + draw(5)));
    const std::string text = text_of(draw(20));
    const std::optional<std::string> cut = CutByHand(text, stops);
    StopMatcher matcher(stops);
    std::string kept;
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + draw(4);
      kept += matcher.Push(text.substr(at, size));
      at += size;
      ASSERT_EQ(text.compare(0, kept.size(), kept), 0) << "it took something back";
      ASSERT_LE(kept.size(), cut.value_or(text).size());
    }
    ASSERT_EQ(matcher.stopped(), cut.has_value());
    if (!matcher.stopped()) kept += matcher.Flush();
    ASSERT_EQ(kept, cut.value_or(text));
  }
}

}  // namespace
}  // namespace caravan
