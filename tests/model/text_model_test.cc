#include "model/text_model.h"

#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_files.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig TinyConfig() {
  const std::string path = std::string(kTinyDirectory) + "/config.json";
  return *ParseModelConfig(*ReadFile(path, 1 << 20), path);
}

TEST(TextModelTest, SplitsAReplyIntoThoughtAndAnswer) {
  const auto text = TextModel::Load(kTinyDirectory, TinyConfig());
  ASSERT_TRUE(text.ok()) << text.status();
  std::vector<int32_t> reply = *(*text)->tokenizer().Encode("<think>1 + 1</think>2");
  reply.push_back((*text)->stop_token_ids().front());
  ReplyStream stream = (*text)->NewReply();
  std::string thought;
  std::string answer;
  for (const int32_t token : reply) {
    for (const ReplyDelta& delta : stream.Push(token)) {
      (delta.part == ReplyPart::kThought ? thought : answer) += delta.text;
    }
  }
  EXPECT_EQ(thought, "1 + 1");
  EXPECT_EQ(answer, "2");
}

TEST(TextModelTest, StopsAtWhatConfigAndChatFormSayEachOnce) {
  ModelConfig config = TinyConfig();
  const int32_t eos = (*TextModel::Load(kTinyDirectory, config))->chat().eos_token_id();
  config.eos_token_ids = {eos};
  EXPECT_THAT((*TextModel::Load(kTinyDirectory, config))->stop_token_ids(), ElementsAre(eos));
  config.eos_token_ids = {7, 9};
  EXPECT_THAT((*TextModel::Load(kTinyDirectory, config))->stop_token_ids(), ElementsAre(7, 9, eos));
}

TEST(TextModelTest, ATokenizerThatIsLargerThanTheModelIsRefused) {
  ModelConfig config = TinyConfig();
  const auto vocab_size = (*TextModel::Load(kTinyDirectory, config))->tokenizer().vocab_size();
  config.vocab_size = vocab_size;
  EXPECT_TRUE(TextModel::Load(kTinyDirectory, config).ok());
  config.vocab_size = vocab_size - 1;
  const absl::Status status = TextModel::Load(kTinyDirectory, config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json: token ids go up to"));
}

TEST(TextModelTest, AMissingFileIsNamed) {
  const absl::Status status = TextModel::Load("/nowhere", TinyConfig()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/tokenizer.json"));
}

}  // namespace
}  // namespace caravan
