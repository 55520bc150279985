#include "cli/conversation.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Said(const v1::SubmitRequest& request) {
  std::vector<std::string> said;
  for (const v1::ChatMessage& message : request.messages()) {
    said.push_back(absl::StrCat(message.role(), ": ", message.content()));
  }
  return said;
}

TEST(ConversationTest, AsksBehindAllThatWasSaid) {
  GenerationFlags flags;
  flags.system = "be brief";
  flags.max_tokens = 7;
  flags.temperature = 0.5;
  flags.top_p = 0.25;
  flags.top_k = 3;
  flags.seed = 9;
  Conversation conversation(flags);
  const v1::SubmitRequest first = conversation.Ask("one");
  EXPECT_THAT(Said(first), ElementsAre("system: be brief", "user: one"));
  EXPECT_EQ(first.max_tokens(), 7u);
  EXPECT_EQ(first.sampling().temperature(), 0.5);
  EXPECT_EQ(first.sampling().top_p(), 0.25);
  EXPECT_EQ(first.sampling().top_k(), 3u);
  EXPECT_EQ(first.sampling().seed(), 9u);

  conversation.Add("one", "\n\n1");
  EXPECT_THAT(Said(conversation.Ask("two")),
              ElementsAre("system: be brief", "user: one", "assistant: \n\n1", "user: two"));
  conversation.set_system("");
  conversation.Clear();
  EXPECT_THAT(Said(conversation.Ask("three")), ElementsAre("user: three"));
}

TEST(ConversationTest, TellsCommandsFromMessages) {
  const auto expect = [](const std::string& line, ChatInputKind kind, const std::string& text) {
    const ChatInput input = ParseChatInput(line);
    EXPECT_EQ(input.kind, kind) << line;
    EXPECT_EQ(input.text, text) << line;
  };
  expect("", ChatInputKind::kNothing, "");
  expect(" \t ", ChatInputKind::kNothing, "");
  expect(" hi ", ChatInputKind::kMessage, " hi ");
  expect("a /help", ChatInputKind::kMessage, "a /help");
  expect("//etc/hosts", ChatInputKind::kMessage, "/etc/hosts");
  expect("/help", ChatInputKind::kHelp, "");
  expect(" /new ", ChatInputKind::kNew, "");
  expect("/quit", ChatInputKind::kQuit, "");
  expect("/system", ChatInputKind::kSystem, "");
  expect("/system  be\nbrief ", ChatInputKind::kSystem, "be\nbrief");
  expect("/systemic", ChatInputKind::kUnknown, "/systemic");
  expect("/quit now", ChatInputKind::kUnknown, "/quit");
  expect("/new\nand", ChatInputKind::kUnknown, "/new");
  expect("/", ChatInputKind::kUnknown, "/");
}

}  // namespace
}  // namespace caravan
