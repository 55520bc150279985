#include "coordinator/job.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kVocabSize = 97;
constexpr int64_t kContext = 20;

void ExpectRefused(const JobSpec& spec, const std::string& text) {
  const absl::Status status = CheckJobSpec(spec, kVocabSize, kContext);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

TEST(JobTest, AcceptsAPromptAsLongAsTheContext) {
  EXPECT_TRUE(CheckJobSpec(ToyJob(kContext, 1000), kVocabSize, kContext).ok());
}

TEST(JobTest, RefusesAnEmptyPrompt) { ExpectRefused(ToyJob(0, 4), "the prompt is empty"); }

TEST(JobTest, RefusesAPromptLongerThanTheContext) {
  ExpectRefused(ToyJob(21, 4), "the prompt has 21 tokens, more than the context of 20");
}

TEST(JobTest, RefusesTokenIdsOutsideTheVocabulary) {
  JobSpec spec = ToyJob(3, 4);
  spec.prompt[1] = 97;
  ExpectRefused(spec, "prompt: token id 97 is outside the vocabulary of 97");
  spec.prompt[1] = -1;
  ExpectRefused(spec, "prompt: token id -1");
  spec.prompt[1] = 0;
  spec.stop_token_ids = {96, 98};
  ExpectRefused(spec, "stop_token_ids: token id 98");
}

TEST(JobTest, RefusesANegativeReply) { ExpectRefused(ToyJob(3, -1), "max_new_tokens is -1"); }

TEST(JobTest, RefusesToScoreAndGenerateAtOnce) {
  JobSpec spec = ToyJob(3, 1);
  spec.prompt_logits = true;
  ExpectRefused(spec, "prompt_logits");
}

TEST(JobTest, RefusesSamplingParametersByName) {
  JobSpec spec = ToyJob(3, 1);
  spec.sampling.set_temperature(-1);
  ExpectRefused(spec, "temperature");
}

}  // namespace
}  // namespace caravan
