#include "cli/choice_scores.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

/// Scores of prompt tokens, by their log-probabilities.
std::vector<ScoredToken> Tokens(const std::vector<float>& log_probabilities) {
  std::vector<ScoredToken> tokens;
  for (const float value : log_probabilities) tokens.push_back({7, value, {}});
  return tokens;
}

TEST(ChoiceScoresTest, SumsOverTheTokensOfTheChoiceAlone) {
  ChoiceScores scores;
  scores.Add("ab", Tokens({-9, -8, -1.5, -0.25}), 2);
  scores.Add("c", Tokens({-9, -8, -1}), 1);
  scores.Add("d", Tokens({-0.5}), 1);
  EXPECT_THAT(scores.log_probabilities(), ElementsAre(-1.75, -1, -0.5));
  EXPECT_EQ(scores.Best(), 2);
}

TEST(ChoiceScoresTest, ByBytesALongChoiceStandsAChance) {
  ChoiceScores scores;
  scores.Add("no", Tokens({-1}), 1);             // -1/2 a byte
  scores.Add("certainly", Tokens({-1, -2}), 2);  // -1/3
  EXPECT_EQ(scores.Best(), 0);
  EXPECT_EQ(scores.BestPerByte(), 1);
}

TEST(ChoiceScoresTest, BytesAreCountedNotCharacters) {
  ChoiceScores scores;
  scores.Add("abcd", Tokens({-2}), 1);             // -1/2 a byte
  scores.Add("\u597d\u597d", Tokens({-2.4f}), 1);  // 6 bytes: -0.4; a character -1.2
  EXPECT_EQ(scores.BestPerByte(), 1);
}

TEST(ChoiceScoresTest, OfEqualsTheFirstIsBest) {
  ChoiceScores scores;
  scores.Add("aa", Tokens({-2}), 1);
  scores.Add("bb", Tokens({-1}), 1);
  scores.Add("cc", Tokens({-1}), 1);
  EXPECT_EQ(scores.Best(), 1);
  EXPECT_EQ(scores.BestPerByte(), 1);
}

}  // namespace
}  // namespace caravan
