#include "coordinator/openai/prompt_echo.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

GenerationRequest::Prompt TextPrompt(const std::string& text) {
  GenerationRequest::Prompt prompt;
  prompt.token_ids = Ids(text);
  prompt.token_ids.insert(prompt.token_ids.begin(), kBos);
  prompt.added_tokens = 1;
  return prompt;
}

/// Of tokens 1, 2, ...; each -0.5 times its position.
std::vector<ScoredToken> Scores(const GenerationRequest::Prompt& prompt) {
  std::vector<ScoredToken> scores;
  for (size_t i = 1; i < prompt.token_ids.size(); ++i) {
    scores.push_back({prompt.token_ids[i], -0.5f * static_cast<float>(i), {}});
  }
  return scores;
}

TEST(PromptEchoTest, LeavesOutWhatTheClientDidNotSend) {
  const GenerationRequest::Prompt prompt = TextPrompt("a bc");
  PromptEcho echo(&TinyText().tokenizer(), &prompt, /*with_scores=*/true);
  EXPECT_EQ(echo.num_characters(), 4);
  echo.Push(Scores(prompt));
  const std::optional<ReplyPiece> piece = echo.Take(/*at_once=*/false);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->text, "a bc");
  ASSERT_EQ(piece->tokens.size(), prompt.token_ids.size() - 1);
  for (size_t i = 0; i < piece->tokens.size(); ++i) {
    // Thanks to the token before them, all have a score.
    EXPECT_TRUE(piece->tokens[i].has_score);
    EXPECT_EQ(piece->tokens[i].scored.token_id, prompt.token_ids[i + 1]);
    EXPECT_EQ(piece->tokens[i].scored.log_probability, -0.5f * static_cast<float>(i + 1));
  }
  EXPECT_FALSE(echo.Take(true).has_value()) << "it is told once";
}

TEST(PromptEchoTest, OfTokensTheFirstHasNoScore) {
  const GenerationRequest::Prompt prompt = {{kBos, Ids("a")[0], Ids("b")[0]}, 0};
  PromptEcho echo(&TinyText().tokenizer(), &prompt, true);
  echo.Push(Scores(prompt));
  const std::optional<ReplyPiece> piece = echo.Take(false);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->text, "<｜begin▁of▁sentence｜>ab");
  ASSERT_EQ(piece->tokens.size(), 3u);
  EXPECT_FALSE(piece->tokens[0].has_score);
  EXPECT_EQ(piece->tokens[0].scored.token_id, kBos);
  EXPECT_EQ(piece->tokens[1].scored.log_probability, -0.5f);
  EXPECT_EQ(piece->tokens[2].scored.log_probability, -1);
  EXPECT_EQ(piece->tokens[1].text_offset, 21);
  EXPECT_EQ(piece->tokens[2].text_offset, 22);
}

TEST(PromptEchoTest, WaitsForAllScores) {
  const GenerationRequest::Prompt prompt = TextPrompt("a b c d");
  const std::vector<ScoredToken> scores = Scores(prompt);
  PromptEcho echo(&TinyText().tokenizer(), &prompt, true);
  for (const ScoredToken& score : scores) {
    EXPECT_FALSE(echo.Take(false).has_value());
    echo.Push({score});
  }
  EXPECT_TRUE(echo.Take(false).has_value());
}

TEST(PromptEchoTest, AtOnceTellsTheScoresThatThereAre) {
  const GenerationRequest::Prompt prompt = TextPrompt("ab cd");
  PromptEcho echo(&TinyText().tokenizer(), &prompt, true);
  echo.Push({Scores(prompt)[0]});
  const std::optional<ReplyPiece> piece = echo.Take(true);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->text, "ab cd");
  EXPECT_TRUE(piece->tokens[0].has_score);
  EXPECT_FALSE(piece->tokens[1].has_score);
}

TEST(PromptEchoTest, OneTokenNeedsNoScore) {
  const GenerationRequest::Prompt prompt = {{Ids("a")[0]}, 0};
  PromptEcho echo(&TinyText().tokenizer(), &prompt, true);
  const std::optional<ReplyPiece> piece = echo.Take(false);
  ASSERT_TRUE(piece.has_value());
  ASSERT_EQ(piece->tokens.size(), 1u);
  EXPECT_FALSE(piece->tokens[0].has_score);
}

TEST(PromptEchoTest, WithoutScoresItIsTextAlone) {
  const GenerationRequest::Prompt prompt = TextPrompt("ab");
  PromptEcho echo(&TinyText().tokenizer(), &prompt, false);
  const std::optional<ReplyPiece> piece = echo.Take(false);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->text, "ab");
  EXPECT_TRUE(piece->tokens.empty());
}

TEST(PromptEchoTest, CountsCharactersAndReplacesBrokenOnes) {
  const GenerationRequest::Prompt whole = TextPrompt(kSmile);
  EXPECT_EQ(PromptEcho(&TinyText().tokenizer(), &whole, true).num_characters(), 1);
  const GenerationRequest::Prompt broken = {{Ids(kSmile)[0], Ids("a")[0], Ids(kSmile)[0]}, 0};
  PromptEcho echo(&TinyText().tokenizer(), &broken, true);
  EXPECT_EQ(echo.num_characters(), 3);
  EXPECT_EQ(echo.Take(true)->text, "\uFFFDa\uFFFD");
}

}  // namespace
}  // namespace caravan
