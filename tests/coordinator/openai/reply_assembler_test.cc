#include "coordinator/openai/reply_assembler.h"

#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

JobUpdate Tokens(const std::vector<int32_t>& ids) {
  JobUpdate update;
  for (const int32_t id : ids) update.tokens.push_back({id, -1, {}});
  return update;
}

JobUpdate End(v1::FinishReason reason = v1::FINISH_REASON_LENGTH) {
  JobUpdate update;
  update.finished = true;
  update.reason = reason;
  return update;
}

/// What an assembler said in all.
struct Reply {
  std::string thought;
  std::string answer;
  std::vector<int32_t> thought_ids;
  std::vector<int32_t> answer_ids;
  std::vector<int64_t> offsets;  // of all tokens
};

void Add(const std::vector<ReplyPiece>& pieces, Reply& reply) {
  for (const ReplyPiece& piece : pieces) {
    const bool is_thought = piece.part == ReplyPart::kThought;
    (is_thought ? reply.thought : reply.answer) += piece.text;
    for (const ReplyToken& token : piece.tokens) {
      (is_thought ? reply.thought_ids : reply.answer_ids).push_back(token.scored.token_id);
      reply.offsets.push_back(token.text_offset);
      EXPECT_TRUE(token.has_score);
    }
  }
}

/// One token at a time, then the end.
Reply Assemble(ReplyAssembler& assembler, const std::vector<int32_t>& ids,
               v1::FinishReason reason = v1::FINISH_REASON_LENGTH) {
  Reply reply;
  for (const int32_t id : ids) Add(assembler.Push(Tokens({id})), reply);
  Add(assembler.Push(End(reason)), reply);
  return reply;
}

ReplyAssembler Chat(const std::vector<std::string>& stop = {}) {
  ReplyAssembler::Options options;
  options.stop = stop;
  return ReplyAssembler(TinyText(), options);
}

ReplyAssembler Completion(const std::vector<std::string>& stop = {}, int64_t text_offset = 0) {
  ReplyAssembler::Options options;
  options.is_chat = false;
  options.stop = stop;
  options.text_offset = text_offset;
  return ReplyAssembler(TinyText(), options);
}

TEST(ReplyAssemblerTest, TellsThoughtAndAnswerOfAChatApart) {
  ReplyAssembler assembler = Chat();
  std::vector<int32_t> ids = Ids("<think>1 + 1</think>It is 2");
  ids.push_back(kEos);
  const Reply reply = Assemble(assembler, ids, v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.thought, "1 + 1");
  EXPECT_EQ(reply.answer, "It is 2");
  EXPECT_TRUE(assembler.done());
  EXPECT_STREQ(assembler.finish_reason(), "stop");
  // Every token counts, the marks to the thought and the end to the answer.
  EXPECT_EQ(assembler.num_tokens(), static_cast<int64_t>(ids.size()));
  EXPECT_EQ(assembler.num_thought_tokens(), static_cast<int64_t>(Ids("1 + 1").size()) + 2);
  EXPECT_EQ(reply.thought_ids, Ids("<think>1 + 1</think>"));
  EXPECT_EQ(reply.answer_ids.back(), kEos);
}

TEST(ReplyAssemblerTest, ACompletionIsAllText) {
  ReplyAssembler assembler = Completion();
  std::vector<int32_t> ids = Ids("a<think>b</think>c");
  ids.push_back(kEos);
  const Reply reply = Assemble(assembler, ids, v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.thought, "");
  EXPECT_EQ(reply.answer, "a<think>b</think>c");  // the end of sentence is no text
  EXPECT_EQ(reply.answer_ids, ids);
  EXPECT_EQ(assembler.num_thought_tokens(), 0);
}

TEST(ReplyAssemblerTest, SaysLengthUnlessTheModelStopped) {
  ReplyAssembler assembler = Chat();
  Assemble(assembler, Ids("a"), v1::FINISH_REASON_LENGTH);
  EXPECT_STREQ(assembler.finish_reason(), "length");
}

TEST(ReplyAssemblerTest, MayEndWithoutAToken) {
  ReplyAssembler assembler = Completion();
  EXPECT_THAT(assembler.Push(End()), IsEmpty());
  EXPECT_TRUE(assembler.done());
  EXPECT_EQ(assembler.num_tokens(), 0);
}

TEST(ReplyAssemblerTest, CutsAtAStopStringThatTokensSplit) {
  const std::vector<int32_t> ids = Ids("one two three four");
  for (const bool is_chat : {true, false}) {
    ReplyAssembler assembler = is_chat ? Chat({"o thr"}) : Completion({"o thr"});
    Reply reply;
    size_t pushed = 0;
    while (!assembler.done() && pushed < ids.size()) {
      Add(assembler.Push(Tokens({ids[pushed++]})), reply);
    }
    EXPECT_EQ(reply.answer, "one tw");
    EXPECT_TRUE(assembler.done());
    EXPECT_LT(pushed, ids.size()) << "its job can end early";
    EXPECT_STREQ(assembler.finish_reason(), "stop");
    EXPECT_EQ(assembler.num_tokens(), static_cast<int64_t>(pushed));
    EXPECT_THAT(assembler.Push(Tokens(ids)), IsEmpty());
    EXPECT_THAT(assembler.Push(End()), IsEmpty());
    EXPECT_STREQ(assembler.finish_reason(), "stop");
    EXPECT_EQ(assembler.num_tokens(), static_cast<int64_t>(pushed));
  }
}

TEST(ReplyAssemblerTest, CutsTheSameWhenAllComesAtOnce) {
  ReplyAssembler assembler = Chat({"o thr"});
  Reply reply;
  JobUpdate all = Tokens(Ids("one two three four"));
  all.finished = true;
  all.reason = v1::FINISH_REASON_LENGTH;
  Add(assembler.Push(all), reply);
  EXPECT_EQ(reply.answer, "one tw");
  EXPECT_STREQ(assembler.finish_reason(), "stop");
}

TEST(ReplyAssemblerTest, ListsNoTokenWhoseTextWasCutAway) {
  const std::vector<int32_t> ids = Ids("aXb");
  ASSERT_EQ(ids.size(), 3u);
  ReplyAssembler assembler = Completion({"X"});
  EXPECT_THAT(Assemble(assembler, ids).answer_ids, ElementsAre(ids[0]));
}

TEST(ReplyAssemblerTest, LooksForStopStringsInTheAnswerOnly) {
  ReplyAssembler assembler = Chat({"1"});
  const Reply reply = Assemble(assembler, Ids("<think>1 + 1</think>It is 1."));
  EXPECT_EQ(reply.thought, "1 + 1");
  EXPECT_EQ(reply.answer, "It is ");
}

TEST(ReplyAssemblerTest, AStopStringDoesNotReachFromOneAnswerToTheNext) {
  ReplyAssembler assembler = Chat({"ab"});
  const Reply reply = Assemble(assembler, Ids("a<think>x</think>b"));
  EXPECT_EQ(reply.answer, "ab");
  EXPECT_EQ(reply.thought, "x");
  EXPECT_STREQ(assembler.finish_reason(), "length");
}

TEST(ReplyAssemblerTest, HoldsATokenBackWithItsText) {
  const std::vector<int32_t> ids = Ids("aXYb");
  ASSERT_EQ(ids.size(), 4u);
  ReplyAssembler assembler = Completion({"XYZ"});
  Reply reply;
  Add(assembler.Push(Tokens({ids[0], ids[1], ids[2]})), reply);
  EXPECT_EQ(reply.answer, "a");
  EXPECT_THAT(reply.answer_ids, ElementsAre(ids[0]));
  Add(assembler.Push(Tokens({ids[3]})), reply);
  EXPECT_EQ(reply.answer, "aXYb");
  EXPECT_EQ(reply.answer_ids, ids);
  EXPECT_THAT(reply.offsets, ElementsAre(0, 1, 2, 3));
}

TEST(ReplyAssemblerTest, TellsAtTheEndWhatItHeldBack) {
  ReplyAssembler assembler = Completion({"XYZ"});
  EXPECT_EQ(Assemble(assembler, Ids("aXY")).answer, "aXY");
  EXPECT_STREQ(assembler.finish_reason(), "length");
}

TEST(ReplyAssemblerTest, GivesWholeCharacters) {
  const std::vector<int32_t> ids = Ids(kSmile);
  ASSERT_GT(ids.size(), 1u);
  for (const bool is_chat : {true, false}) {
    ReplyAssembler assembler = is_chat ? Chat() : Completion();
    for (size_t i = 0; i < ids.size(); ++i) {
      Reply reply;
      Add(assembler.Push(Tokens({ids[i]})), reply);
      EXPECT_EQ(reply.answer, i + 1 == ids.size() ? kSmile : "");
      EXPECT_THAT(reply.answer_ids, ElementsAre(ids[i]));
    }
  }
}

TEST(ReplyAssemblerTest, FindsAStopStringOfSuchACharacter) {
  std::vector<int32_t> ids = Ids("a");
  for (const int32_t id : Ids(kSmile)) ids.push_back(id);
  ReplyAssembler assembler = Chat({kSmile});
  EXPECT_EQ(Assemble(assembler, ids).answer, "a");
  EXPECT_STREQ(assembler.finish_reason(), "stop");
}

TEST(ReplyAssemblerTest, AnUnfinishedCharacterIsReplaced) {
  const int32_t part = Ids(kSmile)[0];
  for (const bool is_chat : {true, false}) {
    ReplyAssembler assembler = is_chat ? Chat() : Completion();
    EXPECT_EQ(Assemble(assembler, {part}).answer, "\uFFFD");
    // A stop string may be the very end.
    ReplyAssembler stopped = is_chat ? Chat({"\uFFFD"}) : Completion({"\uFFFD"});
    EXPECT_EQ(Assemble(stopped, {part}).answer, "");
    EXPECT_STREQ(stopped.finish_reason(), "stop");
  }
}

TEST(ReplyAssemblerTest, CountsOffsetsInCharacters) {
  std::vector<int32_t> ids = Ids("a");
  for (const int32_t id : Ids(kSmile)) ids.push_back(id);
  const size_t smile_tokens = ids.size() - 1;
  ids.push_back(Ids("b")[0]);
  ids.push_back(kEos);
  ReplyAssembler assembler = Completion({}, /*text_offset=*/10);
  const Reply reply = Assemble(assembler, ids, v1::FINISH_REASON_STOP);
  std::vector<int64_t> expected = {10};
  expected.insert(expected.end(), smile_tokens, 11);
  expected.push_back(12);
  expected.push_back(13);
  EXPECT_EQ(reply.offsets, expected);
}

TEST(ReplyAssemblerTest, KeepsScores) {
  ReplyAssembler assembler = Completion();
  JobUpdate update;
  update.tokens.push_back({Ids("a")[0], -0.5, {{7, -0.25}, {8, -1}}});
  const std::vector<ReplyPiece> pieces = assembler.Push(update);
  ASSERT_EQ(pieces.size(), 1u);
  ASSERT_EQ(pieces[0].tokens.size(), 1u);
  EXPECT_EQ(pieces[0].tokens[0].scored, update.tokens[0]);
}

}  // namespace
}  // namespace caravan
