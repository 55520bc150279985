#include "cli/eval_task.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(EvalTaskTest, AQuestionWithItsAnswer) {
  const auto task = ParseEvalTask(R"({"task": "t", "question": "q", "answer": "a"})", "f:1");
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->task, "t");
  EXPECT_EQ(task->origin, "f:1");
  EXPECT_EQ(task->question, "q");
  EXPECT_EQ(task->answer, "a");
  EXPECT_THAT(task->choices, IsEmpty());
  EXPECT_EQ(ParseEvalTask(R"({"question": "q", "answer": "a", "more": [1]})", "f:1")->task, "all");
}

TEST(EvalTaskTest, TheRightChoiceByIndexOrByText) {
  const auto right = [](const std::string& answer) {
    const auto task = ParseEvalTask(
        R"({"question": "q", "choices": ["1", "2", "0"], "answer": )" + answer + "}", "f:1");
    EXPECT_TRUE(task.ok()) << task.status();
    EXPECT_THAT(task->choices, ElementsAre("1", "2", "0"));
    return task->right_choice;
  };
  EXPECT_EQ(right("0"), 0);
  EXPECT_EQ(right("2"), 2);
  EXPECT_EQ(right("\"0\""), 2);
  EXPECT_EQ(right("\"2\""), 1);
}

TEST(EvalTaskTest, ChoicesMayGoOnAPlainPrompt) {
  const auto task =
      ParseEvalTask(R"({"prompt": "p", "choices": [" A", " B"], "answer": 1})", "f:1");
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->prompt, "p");
  EXPECT_EQ(task->question, "");
}

TEST(EvalTaskTest, WhatIsWrongIsNamed) {
  struct Case {
    std::string line;
    std::string says;
  };
  for (const Case& test : {
           Case{"[]", "f:3: must be a JSON object"},
           {R"({"answer": "a"})", "f:3: field \"question\" is missing"},
           {R"({"question": "q"})", "f:3: field \"answer\" is missing"},
           {R"({"question": "q", "answer": 1})", "f:3: field \"answer\" must be a string"},
           {R"({"question": "q", "choices": "ab", "answer": 0})", "\"choices\" must be an array"},
           {R"({"question": "q", "choices": ["a"], "answer": 0})",
            "\"choices\" must hold at least 2 strings"},
           {R"({"question": "q", "choices": ["a", 1], "answer": 0})",
            "\"choices\" must hold strings that are not empty"},
           {R"({"question": "q", "choices": ["a", ""], "answer": 0})",
            "\"choices\" must hold strings that are not empty"},
           {R"({"question": "q", "choices": ["a", "b"]})", "\"answer\" is missing"},
           {R"({"question": "q", "choices": ["a", "b"], "answer": 2})",
            "\"answer\" must be an integer from 0 to 1"},
           {R"({"question": "q", "choices": ["a", "b"], "answer": -1})",
            "\"answer\" must be an integer from 0 to 1"},
           {R"({"question": "q", "choices": ["a", "b"], "answer": "c"})",
            "\"answer\" is none of the choices"},
           {R"({"prompt": "p", "answer": "a"})", "\"prompt\" needs \"choices\""},
           {R"({"prompt": "", "choices": ["a", "b"], "answer": 0})", "\"prompt\" is empty"},
           {R"({"prompt": "p", "question": "q", "choices": ["a", "b"], "answer": 0})",
            "\"prompt\" excludes \"question\""},
       }) {
    const auto task = ParseEvalTask(test.line, "f:3");
    EXPECT_EQ(task.status().code(), absl::StatusCode::kInvalidArgument) << test.line;
    EXPECT_THAT(std::string(task.status().message()), HasSubstr(test.says)) << test.line;
  }
}

TEST(EvalTaskTest, AFileIsReadLineByLine) {
  const TempDir dir;
  const std::string path = dir.Write("tasks.jsonl",
                                     "\n{\"question\": \"q\", \"answer\": \"a\"}\n \n"
                                     "{\"question\": \"r\", \"answer\": \"b\"}");
  const auto tasks = ReadEvalTasks(path);
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  ASSERT_EQ(tasks->size(), 2);
  EXPECT_EQ((*tasks)[0].origin, path + ":2");
  EXPECT_EQ((*tasks)[1].origin, path + ":4");
  dir.Write("tasks.jsonl", "\n\n");
  EXPECT_EQ(ReadEvalTasks(path).status().message(), path + ": holds no tasks");
}

}  // namespace
}  // namespace caravan
