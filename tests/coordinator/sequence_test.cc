#include "coordinator/sequence.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

v1::SliceResult Token(uint32_t token_id) {
  v1::SliceResult result;
  result.add_sampled()->set_token_id(token_id);
  return result;
}

class SequenceTest : public testing::Test {
 protected:
  BlockManager blocks_{64, 4};
};

TEST_F(SequenceTest, PrefillsInChunksThenDecodesToItsLength) {
  JobSpec spec;
  spec.prompt = {10, 11, 12};
  spec.max_new_tokens = 2;
  spec.sampling.set_temperature(1);
  spec.sampling.set_seed(77);
  Sequence sequence(4, spec, {});
  EXPECT_EQ(sequence.state(), SequenceState::kQueued);
  EXPECT_EQ(sequence.worst_case_tokens(), 5);
  ASSERT_TRUE(sequence.Admit(blocks_));

  v1::SequenceSlice slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.sequence_id(), 4u);
  EXPECT_EQ(slice.first_position(), 0u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(10, 11));
  EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_NONE);
  EXPECT_EQ(sequence.tokens_in_flight(), 2);
  EXPECT_EQ(sequence.pending_tokens(), 1);
  sequence.CompleteSlice(2, {}, blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kPrefilling);

  slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.first_position(), 2u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(12));
  EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_SAMPLE);
  EXPECT_EQ(slice.sampling().seed(), 77u);
  sequence.CompleteSlice(1, Token(50), blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kDecoding);
  EXPECT_EQ(sequence.cached_tokens(), 3);

  ASSERT_TRUE(blocks_.Grow(sequence.known_tokens(), sequence.table()));
  slice = sequence.TakeSlice(2);
  EXPECT_EQ(slice.first_position(), 3u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(50));
  sequence.CompleteSlice(1, Token(51), blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(sequence.generated_tokens(), 2);
  EXPECT_EQ(blocks_.free_blocks(), 64);
}

TEST_F(SequenceTest, StopsAtAStopTokenWhichBelongsToTheReply) {
  JobSpec spec = ToyJob(2, 100);
  spec.stop_token_ids = {1, 2};
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10);
  sequence.CompleteSlice(2, Token(2), blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sequence.generated_tokens(), 1);
}

TEST_F(SequenceTest, StopTokenAsTheLastOneAllowedIsAStop) {
  JobSpec spec = ToyJob(2, 1);
  spec.stop_token_ids = {2};
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10);
  sequence.CompleteSlice(2, Token(2), blocks_);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
}

TEST_F(SequenceTest, ScoringAsksForTheLogitsOfEverySlice) {
  JobSpec spec = ToyJob(3, 0);
  spec.prompt_logits = true;
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  EXPECT_EQ(sequence.TakeSlice(2).output(), v1::SLICE_OUTPUT_LOGITS);
  sequence.CompleteSlice(2, {}, blocks_);
  EXPECT_TRUE(sequence.running());
  EXPECT_EQ(sequence.TakeSlice(2).output(), v1::SLICE_OUTPUT_LOGITS);
  sequence.CompleteSlice(1, {}, blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kFinished);
  EXPECT_EQ(sequence.generated_tokens(), 0);
}

TEST_F(SequenceTest, AsksForTheScoreOfEveryPromptTokenButTheFirst) {
  JobSpec spec;
  spec.prompt = {10, 11, 12, 13, 14};
  spec.max_new_tokens = 1;
  spec.score_prompt = true;
  spec.sampling.set_num_alternatives(3);
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  v1::SequenceSlice slice = sequence.TakeSlice(2);
  EXPECT_THAT(slice.scored_token_ids(), ElementsAre(11, 12));
  EXPECT_EQ(slice.sampling().num_alternatives(), 3u);
  slice = sequence.TakeSlice(9);
  EXPECT_THAT(slice.scored_token_ids(), ElementsAre(13, 14));
  EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_SAMPLE);
  EXPECT_FALSE(sequence.preemptible());
}

TEST_F(SequenceTest, PenaltiesNeedTheTokensSoFar) {
  JobSpec spec;
  spec.prompt = {10, 11};
  spec.reply = {12};
  spec.max_new_tokens = 3;
  spec.sampling.set_presence_penalty(0.5);
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  EXPECT_FALSE(sequence.TakeSlice(1).has_history());
  const v1::SequenceSlice slice = sequence.TakeSlice(9);
  EXPECT_THAT(slice.history().prompt_token_ids(), ElementsAre(10, 11));
  EXPECT_THAT(slice.history().reply_token_ids(), ElementsAre(12));
}

TEST_F(SequenceTest, APreemptedOneKeepsItsTokensAndFindsItsOwnBlocks) {
  JobSpec spec = ToyJob(6, 10);
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10);
  sequence.CompleteSlice(6, Token(50), blocks_);
  sequence.Preempt(blocks_);
  EXPECT_EQ(sequence.state(), SequenceState::kQueued);
  EXPECT_EQ(blocks_.free_blocks(), 64);
  EXPECT_EQ(sequence.generated_tokens(), 1);
  ASSERT_TRUE(sequence.Admit(blocks_));
  EXPECT_EQ(sequence.run(), 2u);
  EXPECT_EQ(sequence.reused_tokens(), 0) << "of the first run";
  const v1::SequenceSlice slice = sequence.TakeSlice(10);
  EXPECT_EQ(slice.first_position(), 6u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(50));
}

TEST_F(SequenceTest, BulkRanksAMinuteLater) {
  JobSpec bulk = ToyJob(1, 1);
  bulk.priority = JobPriority::kBulk;
  const Sequence old_bulk(1, bulk, absl::Seconds(10));
  const Sequence interactive(2, ToyJob(1, 1), absl::Seconds(69));
  const Sequence late(3, ToyJob(1, 1), absl::Seconds(71));
  EXPECT_LT(interactive.rank(), old_bulk.rank());
  EXPECT_LT(old_bulk.rank(), late.rank());
}

}  // namespace
}  // namespace caravan
