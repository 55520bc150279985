#include "base/cpu_model.h"

#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST(CpuModelTest, IsTheLineOfTheKernel) {
  std::ifstream file("/proc/cpuinfo");
  const std::string info((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::string model = CpuModel();
  EXPECT_EQ(model.empty(), info.find("model name") == std::string::npos);
  if (!model.empty()) {
    EXPECT_THAT(info, HasSubstr(": " + model + "\n"));
  }
}

}  // namespace
}  // namespace caravan
