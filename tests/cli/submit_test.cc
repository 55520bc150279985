// caravan submit, jobs and cancel, with the real binary.

#include <csignal>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

/// A line of a batch's file.
std::string Line(const std::string& custom_id, const json& body) {
  return json({{"custom_id", custom_id},
               {"method", "POST"},
               {"url", "/v1/chat/completions"},
               {"body", body}})
             .dump() +
         "\n";
}

json Question(const std::string& text) {
  return {{"messages", {{{"role", "user"}, {"content", text}}}}, {"temperature", 0}};
}

/// Noise that runs for as long as the context lets it.
json LongQuestion() {
  return {{"messages", {{{"role", "user"}, {"content", "hi"}}}},
          {"temperature", 2},
          {"seed", 1},
          {"ignore_eos", true}};
}

/// A file of the reference's first `count` questions, and by custom_id what a reply must end with.
struct Questions {
  std::string file;
  std::map<std::string, std::string> answers;
};
Questions FirstQuestions(size_t count) {
  std::ifstream in(CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-replies.jsonl");
  Questions questions;
  std::string line;
  for (size_t i = 0; i < count && std::getline(in, line); ++i) {
    const json golden = json::parse(line);
    const std::string id = absl::StrCat("q", i);
    questions.file += Line(id, Question(golden.at("question")));
    const std::string reply = golden.at("reply");
    const std::vector<std::string> parts = absl::StrSplit(reply, "</think>");
    questions.answers[id] = std::string(absl::StripLeadingAsciiWhitespace(parts.back()));
  }
  EXPECT_EQ(questions.answers.size(), count);
  return questions;
}

/// Of a batch's output: the replies' contents by custom_id.
std::map<std::string, std::string> Contents(const std::string& output) {
  std::map<std::string, std::string> contents;
  for (absl::string_view line : absl::StrSplit(output, '\n', absl::SkipEmpty())) {
    const json reply = json::parse(line);
    EXPECT_EQ(reply.at("response").at("status_code"), 200) << line;
    const std::string content =
        reply.at("response").at("body").at("choices").at(0).at("message").at("content");
    contents[reply.at("custom_id")] = std::string(absl::StripLeadingAsciiWhitespace(content));
  }
  return contents;
}

class SubmitTest : public ::testing::Test {
 protected:
  TestProcess& Run(const std::string& command, const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {command, "--coordinator", cluster_.address(),
                                    "--connect-timeout", "60"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return cluster_.Launch(command, all);
  }

  /// The command's standard output; it must succeed.
  std::string Output(const std::string& command, const std::vector<std::string>& arguments) {
    TestProcess& process = Run(command, arguments);
    EXPECT_EQ(process.Wait(), 0) << process.Transcript();
    return process.Out();
  }

  std::string Write(const std::string& text) { return cluster_.dir().Write("in.jsonl", text); }

  void WaitForJobs(const std::vector<std::string>& arguments, const std::string& text) {
    std::string last;
    EXPECT_TRUE(WaitUntil([&] {
      last = Output("jobs", arguments);
      return absl::StrContains(last, text);
    })) << last;
  }

  TestCluster cluster_;
};

TEST_F(SubmitTest, PrintsTheRepliesOfABatch) {
  cluster_.Start(2);
  const Questions questions = FirstQuestions(6);
  TestProcess& submit = Run("submit", {Write(questions.file), "--wait"});
  EXPECT_EQ(submit.Wait(), 0) << submit.Transcript();
  EXPECT_EQ(Contents(submit.Out()), questions.answers);
  EXPECT_THAT(submit.Err(), ContainsRegex("^batch_[^ ]+\n"));
  EXPECT_THAT(submit.Err(), ContainsRegex("is completed: 6 of 6 lines done, 0 failed\n$"));
  EXPECT_THAT(submit.Err(), HasSubstr("6 of 6 lines"));
}

TEST_F(SubmitTest, WritesTheRepliesIntoAFile) {
  cluster_.Start(1);
  const Questions questions = FirstQuestions(2);
  const std::string output = cluster_.dir().File("out.jsonl");
  TestProcess& submit = Run("submit", {Write(questions.file), "--wait", "--output", output});
  EXPECT_EQ(submit.Wait(), 0) << submit.Transcript();
  EXPECT_EQ(submit.Out(), "");
  EXPECT_EQ(Contents(Slurp(output)), questions.answers);
  EXPECT_FALSE(FileExists(output + ".new"));
}

TEST_F(SubmitTest, WithoutWaitingTheBatchGoesOnByItself) {
  cluster_.Start(1);
  const std::string out = Output("submit", {Write(FirstQuestions(2).file)});
  ASSERT_THAT(out, MatchesRegex("batch_[^ ]+\n"));
  const std::string id(absl::StripSuffix(out, "\n"));
  WaitForJobs({"--all"}, "completed");
  EXPECT_THAT(Output("jobs", {"--all"}),
              ContainsRegex(id + " +completed +/v1/chat/completions +2 +2 +0"));
  EXPECT_EQ(Output("jobs", {}), "no jobs\n\nno batches\n");
  EXPECT_EQ(Run("cancel", {id}).Wait(), 1);  // too late
}

TEST_F(SubmitTest, ALineThatFailsIsToldAndTheOthersAreDone) {
  cluster_.Start(1);
  const Questions questions = FirstQuestions(2);
  TestProcess& submit =
      Run("submit", {Write(questions.file + Line("bad", {{"messages", "no list"}})), "--wait"});
  EXPECT_EQ(submit.Wait(), 1) << submit.Transcript();
  EXPECT_EQ(Contents(submit.Out()), questions.answers);
  EXPECT_THAT(submit.Err(), HasSubstr("\"custom_id\":\"bad\""));
  EXPECT_THAT(submit.Err(), HasSubstr("is completed: 2 of 3 lines done, 1 failed\n"));
}

TEST_F(SubmitTest, WrongFilesAreRefusedByName) {
  cluster_.Start(1);
  const auto expect = [&](const std::vector<std::string>& arguments, const std::string& says) {
    TestProcess& submit = Run("submit", arguments);
    EXPECT_EQ(submit.Wait(), 2) << submit.Transcript();
    EXPECT_THAT(submit.Err(), HasSubstr(says)) << submit.Transcript();
  };
  const std::string good = Write(FirstQuestions(1).file);
  const std::string none = cluster_.dir().File("none.jsonl");
  expect({none}, none + ": No such file or directory");
  expect({cluster_.dir().path()}, cluster_.dir().path());
  const std::string empty = cluster_.dir().Write("empty.jsonl", "");
  expect({empty}, empty + ": the file is empty");
  const std::string bad =
      cluster_.dir().Write("bad.jsonl", Line("a", Question("hi")) + "not JSON\n");
  expect({bad}, bad + ":2: ");
  expect({bad, "--wait"}, bad + ":2: ");
  const std::string twice =
      cluster_.dir().Write("twice.jsonl", Line("a", Question("hi")) + Line("a", Question("hi")));
  expect({twice}, twice + ":2: ");
  expect({good, "--endpoint", "/v1/embeddings"}, "endpoint");
  expect({good, "--output", cluster_.dir().File("out")}, "--output requires --wait");
  expect({good, "--wait", "--output", cluster_.dir().File("none/out")}, "--output: ");
  expect({good, "--wait", "--output", cluster_.dir().path()}, "--output: ");
}

TEST_F(SubmitTest, CtrlCEndsTheWaitingAndCancelTheBatch) {
  cluster_.Start(1);
  TestProcess& submit = Run("submit", {Write(Line("long", LongQuestion())), "--wait"});
  submit.WaitForErr("batch_");
  WaitForJobs({}, "in progress");
  submit.Signal(SIGINT);
  EXPECT_EQ(submit.Wait(), 130) << submit.Transcript();
  const std::string id = submit.Err().substr(0, submit.Err().find('\n'));
  EXPECT_THAT(submit.Err(), HasSubstr(absl::StrCat("no longer waiting; ", id, " goes on")));

  EXPECT_THAT(Output("jobs", {}), ContainsRegex(id + " +in progress"));
  EXPECT_THAT(Output("cancel", {id}), HasSubstr(id + " is "));
  WaitForJobs({}, "no batches");
  EXPECT_THAT(Output("jobs", {"--all"}), ContainsRegex(id + " +cancelled"));
  WaitForJobs({}, "no jobs");
}

TEST_F(SubmitTest, CancelEndsAJobByItsNumber) {
  cluster_.Start(1);
  TestProcess& run = cluster_.StartLongRun();
  const std::string jobs = Output("jobs", {});
  const size_t line = jobs.find('\n') + 1;
  const std::string number = jobs.substr(line, jobs.find(' ', line) - line);
  EXPECT_THAT(jobs, ContainsRegex("\n" + number + " +running "));
  EXPECT_EQ(Output("cancel", {number}), absl::StrCat("job ", number, " is cancelled\n"));
  EXPECT_EQ(run.Wait(), 130);
  EXPECT_EQ(Output("jobs", {}), "no jobs\n\nno batches\n");
}

TEST_F(SubmitTest, UnknownIdsAreRefused) {
  cluster_.StartCoordinator({});
  for (const char* id : {"999999", "batch_nosuch", "garbage", "-1"}) {
    TestProcess& cancel = Run("cancel", {"--", id});
    EXPECT_EQ(cancel.Wait(), 2) << cancel.Transcript();
    EXPECT_THAT(cancel.Err(), HasSubstr(id));
  }
}

TEST_F(SubmitTest, WaitingOutlivesTheCoordinator) {
  const std::vector<std::string> state = {"--state", cluster_.dir().File("state.db")};
  cluster_.Start(1, state);
  json slow = Question("What is 75 + 4050?");
  std::string file;
  for (int i = 0; i < 12; ++i) file += Line(absl::StrCat("q", i), slow);
  TestProcess& submit = Run("submit", {Write(file), "--wait"});
  submit.WaitForErr("batch_");
  cluster_.coordinator().Signal(SIGKILL);
  EXPECT_EQ(cluster_.coordinator().Wait(), 128 + SIGKILL);
  submit.WaitForErr("waiting for it to come back");
  std::vector<std::string> again = {"--listen", cluster_.address()};
  again.insert(again.end(), state.begin(), state.end());
  cluster_.StartCoordinator(again);
  EXPECT_EQ(submit.Wait(), 0) << submit.Transcript();
  const std::map<std::string, std::string> contents = Contents(submit.Out());
  EXPECT_EQ(contents.size(), 12u);
  for (const auto& [id, content] : contents) EXPECT_EQ(content, "75 + 4050 = 4125") << id;
}

TEST_F(SubmitTest, ACoordinatorThatStaysAwayIsGivenUp) {
  cluster_.Start(1);
  const std::string file = Write(Line("long", LongQuestion()));
  TestProcess& submit = Run("submit", {file, "--wait", "--connect-timeout", "0.5"});
  submit.WaitForErr("batch_");
  cluster_.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster_.coordinator().Wait(), 0);
  EXPECT_EQ(submit.Wait(), 3) << submit.Transcript();
  EXPECT_THAT(submit.Err(), HasSubstr("was not back within 0.5 s"));
  EXPECT_THAT(submit.Out(), Not(HasSubstr("\n")));
}

}  // namespace
}  // namespace caravan
