#include "model/reply_stream.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_files.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

constexpr int32_t kEos = 1;
constexpr int32_t kThinkBegin = 2042;
constexpr int32_t kThinkEnd = 2043;

class ReplyStreamTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Encode(const std::string& text) { return *tokenizer_->Encode(text); }

  const std::unique_ptr<Tokenizer> tokenizer_ = LoadTinyTokenizer();
};

TEST_F(ReplyStreamTest, TellsThoughtAndAnswerOfEveryGoldenReply) {
  for (const json& line : ReadGoldenLines("tiny-r1-replies.jsonl")) {
    const auto ids = line["reply_ids"].get<std::vector<int32_t>>();
    ReplyStream stream(*tokenizer_, {kEos});
    std::string thought;
    std::string answer;
    std::vector<int32_t> told;
    for (const int32_t id : ids) {
      for (const ReplyDelta& delta : stream.Push(id)) {
        (delta.part == ReplyPart::kThought ? thought : answer) += delta.text;
        told.insert(told.end(), delta.token_ids.begin(), delta.token_ids.end());
      }
    }
    EXPECT_TRUE(stream.Finish().empty());
    EXPECT_EQ("<think>" + thought + "</think>" + answer, line["reply"].get<std::string>());
    EXPECT_EQ(told, ids);
  }
}

TEST_F(ReplyStreamTest, HoldsBackACharacterButNotItsTokens) {
  const std::vector<int32_t> ids = Encode("\U0001F642");
  ASSERT_GT(ids.size(), 1u);
  ReplyStream stream(*tokenizer_, {kEos});
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string text = i + 1 == ids.size() ? "\U0001F642" : "";
    EXPECT_THAT(stream.Push(ids[i]), ElementsAre(ReplyDelta{ReplyPart::kAnswer, text, {ids[i]}}));
  }
}

TEST_F(ReplyStreamTest, WhatCutsACharacterShortEndsIt) {
  const int32_t part_of_character = Encode("\U0001F642")[0];
  const ReplyDelta held{ReplyPart::kAnswer, "", {part_of_character}};
  const ReplyDelta broken{ReplyPart::kAnswer, "\uFFFD", {}};
  ReplyStream stream(*tokenizer_, {kEos});
  EXPECT_THAT(stream.Push(part_of_character), ElementsAre(held));
  EXPECT_THAT(stream.Push(kThinkBegin),
              ElementsAre(broken, ReplyDelta{ReplyPart::kThought, "", {kThinkBegin}}));
  EXPECT_THAT(stream.Push(kThinkEnd),
              ElementsAre(ReplyDelta{ReplyPart::kThought, "", {kThinkEnd}}));
  EXPECT_THAT(stream.Push(part_of_character), ElementsAre(held));
  EXPECT_THAT(stream.Push(kEos), ElementsAre(ReplyDelta{ReplyPart::kAnswer, "\uFFFD", {kEos}}));
  EXPECT_THAT(stream.Push(part_of_character), ElementsAre(held));
  EXPECT_THAT(stream.Finish(), ElementsAre(broken));
  EXPECT_THAT(stream.Finish(), ElementsAre());
}

TEST_F(ReplyStreamTest, BeginsInTheThoughtWhenThePromptOpenedIt) {
  const int32_t a = Encode("a")[0];
  ReplyStream stream(*tokenizer_, {kEos}, /*starts_in_thought=*/true);
  EXPECT_THAT(stream.Push(a), ElementsAre(ReplyDelta{ReplyPart::kThought, "a", {a}}));
  stream.Push(kThinkEnd);
  EXPECT_THAT(stream.Push(a), ElementsAre(ReplyDelta{ReplyPart::kAnswer, "a", {a}}));
}

TEST_F(ReplyStreamTest, PaddingOfTheVocabularyHasNoText) {
  ReplyStream stream(*tokenizer_, {kEos});
  EXPECT_THAT(stream.Push(2047), ElementsAre(ReplyDelta{ReplyPart::kAnswer, "", {2047}}));
}

TEST(ReplyStreamWithoutMarksTest, AllIsAnswer) {
  json file = TinyTokenizerJson();
  file["added_tokens"].erase(6);
  file["added_tokens"].erase(5);
  const auto tokenizer = LoadTokenizer(WriteTemporaryFile(".json", file.dump()));
  ASSERT_NE(tokenizer, nullptr);
  ReplyStream stream(*tokenizer, {kEos});
  std::string text;
  const std::vector<int32_t> ids = *tokenizer->Encode("<think>a</think>b");
  for (const int32_t id : ids) {
    for (const ReplyDelta& delta : stream.Push(id)) {
      EXPECT_EQ(delta.part, ReplyPart::kAnswer);
      text += delta.text;
    }
  }
  EXPECT_EQ(text, "<think>a</think>b");
}

}  // namespace
}  // namespace caravan
