-- Counts the primes below a number with a sieve.
local limit = tonumber(arg[1]) or 1000000
local composite, count = {}, 0
for n = 2, limit - 1 do
  if not composite[n] then
    count = count + 1
    for multiple = n * n, limit - 1, n do composite[multiple] = true end
  end
end
print(_VERSION .. " counted " .. count .. " primes below " .. limit)
