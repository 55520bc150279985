#include "cli/shaped_link.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

/// Both ends of a connection through a link.
class LinkEnds {
 public:
  explicit LinkEnds(const LinkShape& shape)
      : link_(ShapedLink::Open(shape).value()),
        acceptor_(io_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        near(io_) {
    link_->ConnectTo(absl::StrCat("127.0.0.1:", acceptor_.local_endpoint().port()));
    const std::string& address = link_->address();
    near.connect(
        tcp::endpoint(asio::ip::address_v4::loopback(),
                      static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)))));
    near.set_option(tcp::no_delay(true));
    far.emplace(acceptor_.accept());
    far->set_option(tcp::no_delay(true));
  }

 private:
  asio::io_context io_;
  const std::unique_ptr<ShapedLink> link_;
  tcp::acceptor acceptor_;

 public:
  tcp::socket near;
  std::optional<tcp::socket> far;
};

double Seconds(const std::function<void()>& what) {
  const absl::Duration begin = SteadyClock().Now();
  what();
  return absl::ToDoubleSeconds(SteadyClock().Now() - begin);
}

TEST(ShapedLinkTest, CarriesAllBytesInOrderEachWay) {
  LinkEnds ends({1e9, absl::Milliseconds(1)});
  std::string sent(3 << 20, '\0');
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 31 >> 3);
  for (const auto& [from, to] : {std::pair(&ends.near, &*ends.far), {&*ends.far, &ends.near}}) {
    std::string got(sent.size(), '\0');
    std::thread sender([&, from = from] { asio::write(*from, asio::buffer(sent)); });
    asio::read(*to, asio::buffer(got));
    sender.join();
    EXPECT_TRUE(got == sent);
  }
}

// What it must not be is faster; how much slower it is, is the machine's matter.
TEST(ShapedLinkTest, TakesTheTimeThatRateAndLatencySay) {
  LinkEnds ends({2e6, absl::Milliseconds(40)});
  std::string byte(1, 'a');
  EXPECT_GE(Seconds([&] {
              asio::write(ends.near, asio::buffer(byte));
              asio::read(*ends.far, asio::buffer(byte));
              asio::write(*ends.far, asio::buffer(byte));
              asio::read(ends.near, asio::buffer(byte));
            }),
            0.080);
  std::string bulk(1000000, 'b');
  EXPECT_GE(Seconds([&] {
              std::thread sender([&] { asio::write(ends.near, asio::buffer(bulk)); });
              std::string got(bulk.size(), '\0');
              asio::read(*ends.far, asio::buffer(got));
              sender.join();
            }),
            0.5);
}

TEST(ShapedLinkTest, WhatIsOnTheWayArrivesBeforeTheEnd) {
  LinkEnds ends({1e9, absl::Milliseconds(30)});
  asio::write(ends.near, asio::buffer(std::string("last words")));
  ends.near.close();
  std::string got(10, '\0');
  asio::read(*ends.far, asio::buffer(got));
  EXPECT_EQ(got, "last words");
  boost::system::error_code error;
  EXPECT_EQ(asio::read(*ends.far, asio::buffer(got), error), 0u);
  EXPECT_EQ(error, asio::error::eof);
}

}  // namespace
}  // namespace caravan
