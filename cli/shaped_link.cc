#include "cli/shaped_link.h"

#include <array>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/named_thread.h"

namespace caravan {
namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using Error = boost::system::error_code;
using tcp = asio::ip::tcp;

// About ten frames of Ethernet: small against a step, large against what a chunk costs here.
constexpr size_t kChunkBytes = 16 << 10;
// A wake-up may be late by so much without costing the link its rate.
constexpr std::chrono::milliseconds kSlack(2);

/// One way of the cable, which its connections share.
class Lane {
 public:
  Lane(double bytes_per_second, Clock::duration latency)
      : bytes_per_second_(bytes_per_second), latency_(latency) {}

  /// When `bytes` that want to leave now have left.
  Clock::time_point Leave(size_t bytes) {
    const Clock::time_point now = Clock::now();
    if (free_ < now - kSlack) free_ = now;
    free_ += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(static_cast<double>(bytes) / bytes_per_second_));
    return free_;
  }
  Clock::duration latency() const { return latency_; }

 private:
  const double bytes_per_second_;
  const Clock::duration latency_;
  Clock::time_point free_ = Clock::time_point::min() + std::chrono::hours(1);
};

/// Both ends of a connection.
struct Ends {
  Ends(asio::io_context& io, tcp::socket socket) : near(std::move(socket)), far(io) {}
  void Close() {
    Error ignored;
    near.close(ignored);
    far.close(ignored);
  }
  tcp::socket near;
  tcp::socket far;
};

/// What one connection sends one way. Keeps itself until its end.
class Way : public std::enable_shared_from_this<Way> {
 public:
  Way(asio::io_context& io, std::shared_ptr<Ends> ends, tcp::socket& from, tcp::socket& to,
      Lane& lane)
      : ends_(std::move(ends)), from_(from), to_(to), lane_(lane), leave_(io), arrive_(io) {}

  void Read() {
    from_.async_read_some(asio::buffer(in_),
                          [self = shared_from_this()](const Error& error, size_t bytes) {
                            if (error) return self->End();
                            self->Take(bytes);
                          });
  }

 private:
  struct Chunk {
    std::vector<char> bytes;
    Clock::time_point arrives;
  };

  void Take(size_t bytes) {
    const Clock::time_point left = lane_.Leave(bytes);
    chunks_.push_back({std::vector<char>(in_.data(), in_.data() + bytes), left + lane_.latency()});
    if (chunks_.size() == 1) Deliver();
    leave_.expires_at(left);
    leave_.async_wait([self = shared_from_this()](const Error& error) {
      if (!error) self->Read();
    });
  }

  void Deliver() {
    arrive_.expires_at(chunks_.front().arrives);
    arrive_.async_wait([self = shared_from_this()](const Error& error) {
      if (error) return;
      asio::async_write(self->to_, asio::buffer(self->chunks_.front().bytes),
                        [self](const Error& failed, size_t) {
                          if (failed) return self->End();
                          self->chunks_.pop_front();
                          if (!self->chunks_.empty()) return self->Deliver();
                          if (self->ended_) self->ends_->Close();
                        });
    });
  }

  /// What is on the way still arrives.
  void End() {
    ended_ = true;
    if (chunks_.empty()) ends_->Close();
  }

  const std::shared_ptr<Ends> ends_;
  tcp::socket& from_;
  tcp::socket& to_;
  Lane& lane_;
  asio::steady_timer leave_;
  asio::steady_timer arrive_;
  std::array<char, kChunkBytes> in_;
  std::deque<Chunk> chunks_;
  bool ended_ = false;
};

class SoftwareLink final : public ShapedLink {
 public:
  explicit SoftwareLink(const LinkShape& shape)
      : there_(shape.bytes_per_second, absl::ToChronoNanoseconds(shape.latency)),
        back_(shape.bytes_per_second, absl::ToChronoNanoseconds(shape.latency)),
        acceptor_(io_) {}
  ~SoftwareLink() override {
    io_.stop();
    if (thread_ != nullptr) thread_->Join();
  }

  absl::Status Listen() {
    Error error;
    const tcp::endpoint any(asio::ip::address_v4::loopback(), 0);
    acceptor_.open(any.protocol(), error);
    if (!error) acceptor_.bind(any, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return absl::InternalError(absl::StrCat("a link's port: ", error.message()));
    address_ = absl::StrCat("127.0.0.1:", acceptor_.local_endpoint().port());
    thread_ = std::make_unique<NamedThread>("shaped-link", [this] { io_.run(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void ConnectTo(const std::string& target) override {
    const size_t colon = target.rfind(':');
    int port = 0;
    CARAVAN_CHECK(colon != std::string::npos && absl::SimpleAtoi(target.substr(colon + 1), &port));
    const tcp::endpoint endpoint(asio::ip::make_address(target.substr(0, colon)),
                                 static_cast<uint16_t>(port));
    asio::post(io_, [this, endpoint] {
      const bool first = target_ == tcp::endpoint();
      target_ = endpoint;
      if (first) Accept();
    });
  }

 private:
  void Accept() {
    acceptor_.async_accept([this](const Error& error, tcp::socket socket) {
      if (error) return;
      Connect(std::make_shared<Ends>(io_, std::move(socket)));
      Accept();
    });
  }

  void Connect(const std::shared_ptr<Ends>& ends) {
    ends->far.async_connect(target_, [this, ends](const Error& error) {
      if (error) return ends->Close();
      Error ignored;
      ends->near.set_option(tcp::no_delay(true), ignored);
      ends->far.set_option(tcp::no_delay(true), ignored);
      std::make_shared<Way>(io_, ends, ends->near, ends->far, there_)->Read();
      std::make_shared<Way>(io_, ends, ends->far, ends->near, back_)->Read();
    });
  }

  asio::io_context io_{1};
  const asio::executor_work_guard<asio::io_context::executor_type> busy_ =
      asio::make_work_guard(io_);
  // By the thread alone, once it runs.
  Lane there_;
  Lane back_;
  tcp::acceptor acceptor_;
  tcp::endpoint target_;

  std::string address_;
  std::unique_ptr<NamedThread> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShapedLink>> ShapedLink::Open(const LinkShape& shape) {
  CARAVAN_CHECK(shape.bytes_per_second > 0);
  auto link = std::make_unique<SoftwareLink>(shape);
  if (const absl::Status status = link->Listen(); !status.ok()) return status;
  return link;
}

}  // namespace caravan
