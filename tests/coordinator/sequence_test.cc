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

/// A result with these tokens, and drafts of what follows.
v1::SliceResult Tokens(const std::vector<uint32_t>& tokens, const std::vector<uint32_t>& drafts) {
  v1::SliceResult result;
  for (const uint32_t token : tokens) result.add_sampled()->set_token_id(token);
  result.mutable_draft_token_ids()->Add(drafts.begin(), drafts.end());
  return result;
}

TEST_F(SequenceTest, ChunksOfAPromptSayWhatFollowsThem) {
  JobSpec spec;
  spec.prompt = {10, 11, 12};
  spec.max_new_tokens = 2;
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  v1::SequenceSlice slice = sequence.TakeSlice(2, /*draft=*/true);
  EXPECT_TRUE(slice.draft());
  EXPECT_EQ(slice.next_token_id(), 12u);
  slice = sequence.TakeSlice(2, /*draft=*/true);
  EXPECT_TRUE(slice.draft());
  EXPECT_FALSE(slice.has_next_token_id());
  EXPECT_EQ(slice.num_draft_tokens(), 0u);
}

TEST_F(SequenceTest, DraftsGoBehindTheNewestTokenAndAreKnownOnceAccepted) {
  Sequence sequence(1, ToyJob(2, 100), {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  EXPECT_EQ(sequence.CompleteSlice(2, Tokens({50}, {51, 52, 53}), blocks_), 1);
  EXPECT_EQ(sequence.num_drafts(), 3);
  EXPECT_EQ(sequence.known_tokens(), 3);
  ASSERT_TRUE(blocks_.Grow(6, sequence.table()));
  v1::SequenceSlice slice = sequence.TakeSlice(4, true);
  EXPECT_EQ(slice.first_position(), 2u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(50, 51, 52, 53));
  EXPECT_EQ(slice.num_draft_tokens(), 3u);
  EXPECT_EQ(sequence.tokens_in_flight(), 1);
  // Two are accepted; a third token comes in place of the last draft.
  EXPECT_EQ(sequence.CompleteSlice(1, Tokens({51, 52, 60}, {61}), blocks_), 3);
  EXPECT_EQ(sequence.known_tokens(), 6);
  EXPECT_EQ(sequence.cached_tokens(), 5);
  EXPECT_EQ(sequence.pending_tokens(), 1);
  slice = sequence.TakeSlice(1, true);
  EXPECT_EQ(slice.first_position(), 5u);
  EXPECT_THAT(slice.token_ids(), ElementsAre(60)) << "no row was left for the draft";
  EXPECT_EQ(sequence.num_drafts(), 0);
}

TEST_F(SequenceTest, DraftsAreForgottenWhereNobodyDrafts) {
  Sequence sequence(1, ToyJob(2, 100), {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  sequence.CompleteSlice(2, Tokens({50}, {51}), blocks_);
  ASSERT_TRUE(blocks_.Grow(4, sequence.table()));
  const v1::SequenceSlice slice = sequence.TakeSlice(9, false);
  EXPECT_THAT(slice.token_ids(), ElementsAre(50));
  EXPECT_FALSE(slice.draft());
  EXPECT_EQ(sequence.num_drafts(), 0);
}

TEST_F(SequenceTest, AStopTokenCutsARunOffAndNothingBehindItIsPublished) {
  JobSpec spec = ToyJob(2, 100);
  spec.stop_token_ids = {52};
  Sequence sequence(1, spec, {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  sequence.CompleteSlice(2, Tokens({50}, {51, 52, 53}), blocks_);
  ASSERT_TRUE(blocks_.Grow(6, sequence.table()));
  sequence.TakeSlice(4, true);
  EXPECT_EQ(sequence.CompleteSlice(1, Tokens({51, 52, 53, 54}, {55}), blocks_), 2);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sequence.generated_tokens(), 3);
  EXPECT_EQ(blocks_.free_blocks(), 64);
  std::vector<int32_t> tokens = spec.prompt;
  tokens.insert(tokens.end(), {50, 51, 52, 53, 54});
  BlockTable table;
  EXPECT_EQ(blocks_.Adopt(tokens, table), 5);
}

TEST_F(SequenceTest, MaxNewTokensBoundsTheDrafts) {
  Sequence sequence(1, ToyJob(2, 3), {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  sequence.CompleteSlice(2, Tokens({50}, {51, 52, 53}), blocks_);
  EXPECT_EQ(sequence.num_drafts(), 1);
  ASSERT_TRUE(blocks_.Grow(4, sequence.table()));
  EXPECT_THAT(sequence.TakeSlice(9, true).token_ids(), ElementsAre(50, 51));
  EXPECT_EQ(sequence.CompleteSlice(1, Tokens({51, 52}, {53}), blocks_), 2);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(sequence.generated_tokens(), 3);
}

TEST_F(SequenceTest, ABlockIsFoundThatARunWentBeyond) {
  Sequence sequence(1, ToyJob(2, 100), {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  sequence.CompleteSlice(2, Tokens({50}, {51, 52}), blocks_);
  ASSERT_TRUE(blocks_.Grow(5, sequence.table()));
  sequence.TakeSlice(3, true);
  sequence.CompleteSlice(1, Tokens({51, 52, 53}, {}), blocks_);  // positions 2 to 4, blocks of 4
  std::vector<int32_t> tokens = ToyPrompt(2);
  tokens.insert(tokens.end(), {50, 51, 99, 99});
  BlockTable table;
  EXPECT_EQ(blocks_.Adopt(tokens, table), 4);
}

TEST_F(SequenceTest, APreemptedOneForgetsItsDrafts) {
  Sequence sequence(1, ToyJob(6, 10), {});
  ASSERT_TRUE(sequence.Admit(blocks_));
  sequence.TakeSlice(10, true);
  sequence.CompleteSlice(6, Tokens({50}, {51}), blocks_);
  sequence.Preempt(blocks_);
  EXPECT_EQ(sequence.num_drafts(), 0);
  ASSERT_TRUE(sequence.Admit(blocks_));
  EXPECT_THAT(sequence.TakeSlice(10, true).token_ids(), ElementsAre(50));
}

TEST_F(SequenceTest, ACopyThatWasNotMadeIsFoundByNobody) {
  JobSpec spec = ToyJob(6, 10);
  Sequence first(1, spec, {});
  ASSERT_TRUE(first.Admit(blocks_));
  first.TakeSlice(10);
  first.CompleteSlice(6, Token(50), blocks_);  // a block of four tokens and one of two
  first.Cancel(blocks_);
  // The second copies the half block, and is gone before a step could say so to the workers.
  Sequence second(2, ToyJob(9, 10), {});
  ASSERT_TRUE(second.Admit(blocks_));
  ASSERT_TRUE(second.table().pending_copy.has_value());
  const uint32_t copy = second.table().pending_copy->to;
  second.Cancel(blocks_);
  BlockTable table;
  EXPECT_EQ(blocks_.Adopt(ToyPrompt(9), table), 6);
  ASSERT_TRUE(table.pending_copy.has_value());
  EXPECT_NE(table.pending_copy->from, copy);
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
