#include "coordinator/sequence.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

v1::SliceResult Token(uint32_t token_id) {
  v1::SliceResult result;
  result.set_token_id(token_id);
  return result;
}

TEST(SequenceTest, PrefillsInChunksThenDecodesToItsLength) {
  JobSpec spec;
  spec.prompt = {10, 11, 12};
  spec.max_new_tokens = 2;
  spec.sampling.set_temperature(1);
  spec.sampling.set_seed(77);
  Sequence sequence(4, spec);
  EXPECT_EQ(sequence.state(), SequenceState::kQueued);
  EXPECT_EQ(sequence.worst_case_tokens(), 5);
  sequence.Admit();

  v1::SequenceSlice slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.sequence_id(), 4u);
  EXPECT_EQ(slice.first_position(), 0u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(10, 11));
  EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_NONE);
  EXPECT_EQ(sequence.tokens_in_flight(), 2);
  EXPECT_EQ(sequence.pending_tokens(), 1);
  sequence.CompleteSlice({});
  EXPECT_EQ(sequence.state(), SequenceState::kPrefilling);

  slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.first_position(), 2u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(12));
  EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_SAMPLE);
  EXPECT_EQ(slice.sampling().seed(), 77u);
  sequence.CompleteSlice(Token(50));
  EXPECT_EQ(sequence.state(), SequenceState::kDecoding);
  EXPECT_EQ(sequence.cached_tokens(), 3);

  slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.first_position(), 3u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(50));
  sequence.CompleteSlice(Token(51));
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(sequence.generated_tokens(), 2);
}

TEST(SequenceTest, StopsAtAStopTokenWhichBelongsToTheReply) {
  JobSpec spec = ToyJob(2, 100);
  spec.stop_token_ids = {1, 2};
  Sequence sequence(1, spec);
  sequence.Admit();
  sequence.TakeSlice(10);
  sequence.CompleteSlice(Token(2));
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sequence.generated_tokens(), 1);
}

TEST(SequenceTest, StopTokenAsTheLastOneAllowedIsAStop) {
  JobSpec spec = ToyJob(2, 1);
  spec.stop_token_ids = {2};
  Sequence sequence(1, spec);
  sequence.Admit();
  sequence.TakeSlice(10);
  sequence.CompleteSlice(Token(2));
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
}

TEST(SequenceTest, ScoringAsksForTheLogitsOfEverySlice) {
  JobSpec spec = ToyJob(3, 0);
  spec.prompt_logits = true;
  Sequence sequence(1, spec);
  sequence.Admit();
  EXPECT_EQ(sequence.TakeSlice(2).output(), v1::SLICE_OUTPUT_LOGITS);
  sequence.CompleteSlice({});
  EXPECT_TRUE(sequence.running());
  EXPECT_EQ(sequence.TakeSlice(2).output(), v1::SLICE_OUTPUT_LOGITS);
  sequence.CompleteSlice({});
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.generated_tokens(), 0);
}

}  // namespace
}  // namespace caravan
