#ifndef CARAVAN_TESTS_SUPPORT_QUESTIONS_H_
#define CARAVAN_TESTS_SUPPORT_QUESTIONS_H_

// Questions to a cluster of tiny-r1, and what `caravan run` must print: the greedy replies of
// another implementation.

#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/test_cluster.h"

namespace caravan {

struct Question {
  std::string prompt;
  std::string printed;  // what `caravan run` must print
};

/// The first `count` prompts of the reference's replies.
inline std::vector<Question> Questions(size_t count) {
  std::ifstream in(CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-replies.jsonl");
  std::vector<Question> questions;
  for (std::string line; questions.size() < count && std::getline(in, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    const std::string reply = absl::StrReplaceAll(json.at("reply").get<std::string>(),
                                                  {{"<think>", ""}, {"</think>", ""}});
    questions.push_back({json.at("question"), reply + "\n"});
  }
  EXPECT_EQ(questions.size(), count);
  return questions;
}

/// Asks them one after the other.
inline void ExpectReplies(TestCluster& cluster, const std::vector<Question>& questions) {
  for (const Question& question : questions) {
    TestProcess& run = cluster.StartRun(question.prompt);
    EXPECT_EQ(run.Wait(), 0) << run.Err();
    EXPECT_EQ(run.Out(), question.printed);
  }
}

/// Asks them all at once.
inline void ExpectRepliesTogether(TestCluster& cluster, const std::vector<Question>& questions) {
  std::vector<TestProcess*> runs;
  for (const Question& question : questions) runs.push_back(&cluster.StartRun(question.prompt));
  for (size_t i = 0; i < runs.size(); ++i) {
    EXPECT_EQ(runs[i]->Wait(), 0) << runs[i]->Err();
    EXPECT_EQ(runs[i]->Out(), questions[i].printed);
  }
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_QUESTIONS_H_
